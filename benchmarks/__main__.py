"""``python -m benchmarks NAME [--out JSON]``: run one benchmark, print its table, write its record.

A benchmark is a module of this folder with ``HELP`` and ``run(settings) -> Report``; the names are listed here. One
that has options of its own adds them in ``add_arguments(parser)``, and its ``run`` takes the parsed ones as well. Those
of ``ON_DEVICES`` compute on ``settings.device``. ``profile`` has a command line of its own (profile.py).
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch

from benchmarks import harness

NAMES = {
    "degrade": "benchmarks.bench_degrade",
    "contrastive": "benchmarks.bench_contrastive",
    "resources": "benchmarks.resources",
    "roofline_degrade": "benchmarks.roofline_degrade",
    "roofline_loss": "benchmarks.roofline_loss",
    "scaling": "benchmarks.scaling",
    "score": "benchmarks.bench_score",
    "loader": "benchmarks.bench_loader",
    "step": "benchmarks.bench_step",
    "preset_fidelity": "benchmarks.preset_fidelity",
}
ON_DEVICES = ("degrade", "contrastive", "score", "loader", "step")


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; return the exit status: 2 for an error of the user's, 1 if contenders disagree."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["profile"]:
        from benchmarks import profile

        return profile.main(arguments[1:])
    modules = {name: importlib.import_module(module) for name, module in NAMES.items()}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:16} {module.HELP}" for name, module in modules.items())
        + "\n  profile          where the compiled kernels' instructions go: profile degrade|contrastive --help",
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help="one of: " + ", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch and the engine (default: torch's own)")
    parser.add_argument("--device", default="cpu", help="what tensors are on: cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; not for results")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/NAME.json; --quick: none)")
    for module in modules.values():
        if hasattr(module, "add_arguments"):
            module.add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--rounds and --threads must be >= 1")
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    if problem := _refused(options.name, options.device):
        parser.error(problem)
    settings = harness.Settings(rounds=options.rounds, quick=options.quick, device=options.device)
    try:
        module = modules[options.name]
        report = module.run(settings, options) if hasattr(module, "add_arguments") else module.run(settings)
    except harness.Disagreement as error:
        print(f"benchmarks {options.name}: {error}; nothing was timed", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        print(f"benchmarks {options.name}: error: {error}", file=sys.stderr)
        return 2
    print(harness.markdown(report))
    out = options.out or (None if options.quick else harness.RESULTS / f"{options.name}.json")
    if out is not None:
        harness.write_json(report, settings, out)
        print(f"\nwritten: {out}", file=sys.stderr)
    return 0


def _refused(name: str, device: str) -> str | None:
    """Return why a benchmark cannot run on a device; None if it can."""
    try:
        wanted = torch.device(device)
    except RuntimeError:
        return f"--device must be cpu, cuda or cuda:N, got {device!r}"
    if wanted.type == "cpu":
        return None
    if name not in ON_DEVICES:
        return f"--device must be cpu for {name}, which computes nothing on a device, got {device!r}"
    count = torch.cuda.device_count() if wanted.type == "cuda" else 0
    if count <= (wanted.index or 0):
        return f"--device must be usable here, got {device!r} with {count} CUDA devices"
    torch.cuda.set_device(wanted)  # where Triton launches its kernels
    return None


if __name__ == "__main__":
    sys.exit(main())

# QPT on a machine with NVIDIA GPUs: docker build -t qpt . && docker run --gpus all -it --rm -v "$PWD/runs:/qpt/runs" qpt
# The base brings nvcc, so the image holds the CUDA fat binary. An image is built on one machine and run on others:
# hence the portable instruction set.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
RUN python3 -m venv "$VIRTUAL_ENV"

WORKDIR /qpt
# torch in a layer of its own: it is by far the largest and changes least.
COPY requirements requirements
RUN pip install --no-cache-dir --requirement requirements/torch.txt

COPY . .
ARG QPT_CUDA_ARCHS="80;90"
RUN QPT_CUDA=1 QPT_PORTABLE=1 QPT_CUDA_ARCHS="$QPT_CUDA_ARCHS" \
    pip install --no-cache-dir --constraint requirements/torch.txt --editable ".[demo,cuda,test]" \
    && rm -rf build

CMD ["qpt", "doctor"]

// The C interface that native.py calls: the opcode table, and one launch.
#include <cstdio>

#include "machine.h"

namespace ptx {

std::vector<Opcode>& opcodes() {
  static std::vector<Opcode> table;
  return table;
}
namespace {
std::unordered_map<std::string, i32>& names() {
  static std::unordered_map<std::string, i32> found;
  return found;
}
void fill_table() {
  if (!opcodes().empty()) return;
  add_integer(), add_compare(), add_float(), add_convert(), add_memory(), add_warp(), add_matrix(), add_control();
}
}  // namespace
void add(const std::string& name, const std::string& signature, Run run, u32 flags) {
  if (names().emplace(name, opcodes().size()).second) opcodes().push_back({name, signature, run, flags});
}

struct BufferGiven {  // mirrored by native.py
  u64 base, size;
  u8 *data, *valid;
  i64 writable;
  const char* name;
};
struct LaunchGiven {
  const Instr* code;
  i64 instructions;
  const u8* constants;
  i64 constant_bytes;
  const Operand* specials;
  i64 special_count;
  const u8* static_valid;
  i64 static_bytes;
  const BufferGiven* buffers;
  i64 buffer_count;
  Counts* counts;
  u32 grid[3], shape[3];
  u32 register_bytes, slots, local_bytes, shared_bytes, entry, unused;
  Options options;
  // out
  i64 pc, other_pc, block, thread, other_block, other_thread, executed;
  char kind[32], text[512];
};

}  // namespace ptx

extern "C" {

// The number of an opcode with its signature and flags; -1: there is none.
int ptx_find(const char* name, const char** signature, unsigned* flags) {
  ptx::fill_table();
  const auto found = ptx::names().find(name);
  if (found == ptx::names().end()) return -1;
  const ptx::Opcode& opcode = ptx::opcodes()[found->second];
  *signature = opcode.signature.c_str(), *flags = opcode.flags;
  return found->second;
}
int ptx_count() {
  ptx::fill_table();
  return ptx::opcodes().size();
}

// 0, or 1 with the fault in `given`.
int ptx_launch(ptx::LaunchGiven* given) {
  using namespace ptx;
  Machine m;
  m.code.assign(given->code, given->code + given->instructions);
  m.counts.assign(given->counts, given->counts + given->instructions);
  m.constants.assign(given->constants, given->constants + given->constant_bytes);
  m.specials.assign(given->specials, given->specials + given->special_count);
  m.static_valid.assign(given->static_valid, given->static_valid + given->static_bytes);
  m.options = given->options;
  std::copy(given->grid, given->grid + 3, m.grid);
  std::copy(given->shape, given->shape + 3, m.shape);
  m.register_bytes = given->register_bytes, m.slots = given->slots, m.local_bytes = given->local_bytes;
  m.shared_bytes = given->shared_bytes, m.entry = given->entry;
  for (i64 k = 0; k < given->buffer_count; ++k) {
    const BufferGiven& b = given->buffers[k];
    auto region = std::make_unique<Region>(Region{b.base, b.size, b.data, b.valid, b.writable != 0, b.name, {}});
    if (m.options.races && b.writable) region->cells.resize(b.size);
    m.regions[b.base] = std::move(region);
  }
  int failed = 0;
  try {
    m.run();
  } catch (const Fault& f) {
    failed = 1;
    std::snprintf(given->kind, sizeof given->kind, "%s", f.kind.c_str());
    std::snprintf(given->text, sizeof given->text, "%s", f.text.c_str());
    given->pc = f.pc, given->other_pc = f.other_pc, given->block = f.block, given->thread = f.thread;
    given->other_block = f.other_block, given->other_thread = f.other_thread;
  }
  given->executed = m.executed;
  std::copy(m.counts.begin(), m.counts.end(), given->counts);
  return failed;
}
}

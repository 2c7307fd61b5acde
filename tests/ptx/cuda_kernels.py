"""CUDA kernels written for the tests of the executor: what is common on GPUs, without a header, for nvcc and NVRTC."""

SOURCE = r"""
extern "C" {

// Sum of n numbers by warp shuffles, one block.
__global__ void total(const float* x, float* out, int n) {
  __shared__ float part[32];
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
    if (threadIdx.x == 0) *out = sum;
  }
}

// Histogram of bytes: atomics in shared memory, then in global memory.
__global__ void histogram(const unsigned char* x, unsigned* out, int n) {
  __shared__ unsigned bins[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&bins[x[i]], 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x)
    if (bins[i]) atomicAdd(&out[i], bins[i]);
}

// Inclusive sums of one block's numbers.
__global__ void scan(const int* x, int* out, int n) {
  __shared__ int ends[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int value = threadIdx.x < n ? x[threadIdx.x] : 0;
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xffffffff, value, step);
    if (lane >= step) value += before;
  }
  if (lane == 31) ends[warp] = value;
  __syncthreads();
  if (warp == 0) {
    int end = lane < blockDim.x / 32 ? ends[lane] : 0;
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(0xffffffff, end, step);
      if (lane >= step) end += before;
    }
    ends[lane] = end;
  }
  __syncthreads();
  if (warp > 0) value += ends[warp - 1];
  if (threadIdx.x < n) out[threadIdx.x] = value;
}

// 32 x 32 tiles through shared memory.
__global__ void transpose(const float* x, float* out, int height, int width) {
  __shared__ float tile[32][33];
  const int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
  for (int k = 0; k < 32; k += 8)
    if (row + k < height && column < width) tile[threadIdx.y + k][threadIdx.x] = x[(row + k) * width + column];
  __syncthreads();
  const int to_column = blockIdx.y * 32 + threadIdx.x, to_row = blockIdx.x * 32 + threadIdx.y;
  for (int k = 0; k < 32; k += 8)
    if (to_row + k < width && to_column < height)
      out[(to_row + k) * height + to_column] = tile[threadIdx.x][threadIdx.y + k];
}

// The block that ends last adds up what the others left.
__device__ unsigned finished = 0;
__global__ void last_block(const float* x, float* parts, float* out, int n) {
  __shared__ bool last;
  float sum = 0;
  if (threadIdx.x == 0) {
    for (int i = blockIdx.x; i < n; i += gridDim.x) sum += x[i];
    parts[blockIdx.x] = sum;
    __threadfence();
    last = atomicAdd(&finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    sum = 0;
    for (int b = 0; b < gridDim.x; ++b) sum += ((volatile float*)parts)[b];
    *out = sum;
  }
}

// All blocks wait for each other between two steps: out[i] = neighbour's square.
__device__ unsigned arrived = 0;
__global__ void grid_barrier(int* squares, int* out) {
  if (threadIdx.x == 0) squares[blockIdx.x] = blockIdx.x * blockIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(&arrived, 1u);
    while (atomicAdd(&arrived, 0u) < gridDim.x) {
    }
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = squares[(blockIdx.x + 1) % gridDim.x];
}

// Calls with structures by value, local arrays, a switch, recursion-free but not inlined.
struct Pair { double first; int second; float third[3]; };
__device__ __noinline__ Pair mix(Pair p, int k) {
  Pair r = p;
  r.first = p.first * k + p.third[k % 3];
  r.second = p.second ^ k;
  r.third[k % 3] = p.third[(k + 1) % 3] + 1;
  return r;
}
__global__ void calls(double* out, int* flags, int rounds) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  Pair p = {i * 0.5, i, {1.0f, 2.0f, 3.0f}};
  for (int k = 0; k < rounds; ++k)
    if ((i + k) % 3) p = mix(p, k);
  out[i] = p.first + p.third[0] + 10 * p.third[1] + 100 * p.third[2];
  flags[i] = p.second;
}
__global__ void local_array(const int* x, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int counts[16];
  for (int k = 0; k < 16; ++k) counts[k] = 0;
  for (int k = 0; k < 40; ++k) counts[(x[i] * (k + 1)) & 15] += k;
  int most = 0;
  for (int k = 1; k < 16; ++k) if (counts[k] > counts[most]) most = k;
  switch (most % 9) {
    case 0: out[i] = counts[0] - 7; break;
    case 1: out[i] = counts[most] * 3; break;
    case 2: out[i] = ~counts[2]; break;
    case 3: out[i] = counts[most] << 2; break;
    case 4: out[i] = counts[4] / 3; break;
    case 5: out[i] = counts[most] % 11; break;
    case 6: out[i] = counts[6] ^ 0x55; break;
    case 7: out[i] = -counts[7]; break;
    default: out[i] = 1000 + most; break;
  }
}

// The compiler's mathematical functions, whose slow paths use local memory and 64-bit products.
__global__ void functions(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float a = x[i];
  out[0 * n + i] = expf(a);
  out[1 * n + i] = logf(fabsf(a));
  out[2 * n + i] = sinf(a * 1e5f);
  out[3 * n + i] = powf(fabsf(a), 1.7f);
  out[4 * n + i] = erff(a);
  out[5 * n + i] = tanhf(a);
  out[6 * n + i] = cbrtf(a);
  out[7 * n + i] = fmodf(a * 1000, 3.3f);
}
__global__ void double_functions(const double* x, double* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const double a = x[i];
  out[0 * n + i] = exp(a);
  out[1 * n + i] = log(fabs(a));
  out[2 * n + i] = sin(a * 1e7);
  out[3 * n + i] = a / (a * a + 3);
  out[4 * n + i] = sqrt(fabs(a));
}

// Votes of a block and of a warp.
__global__ void votes(const int* x, int* out) {
  const int i = threadIdx.x;
  out[i] = __syncthreads_count(x[i] > 0);
  out[blockDim.x + i] = __popc(__ballot_sync(0xffffffff, x[i] > 0));
  out[2 * blockDim.x + i] = __syncthreads_or(x[i] == 12345);
  out[3 * blockDim.x + i] = __syncthreads_and(x[i] < 1000000);
}

// A compare-and-swap loop and other atomics on global memory.
__global__ void atomics(int* cell, double* sum, unsigned long long* most) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  int seen = *(volatile int*)cell, expected;
  do {
    expected = seen;
    seen = atomicCAS(&cell[0], expected, expected + i);
  } while (seen != expected);
  atomicMax(&cell[1], i);
  atomicXor(&cell[2], i);
  atomicAdd(sum, 0.5);
  atomicMin(most, 1000ull - i);
}

// Four copies ahead: asynchronous copies into a ring of shared buffers.
__global__ void ring(const float4* x, float4* out, int rounds) {
  __shared__ float4 buffer[4][64];
  const int t = threadIdx.x;
  for (int k = 0; k < 3; ++k) {
    if (k < rounds) {
      unsigned to = __cvta_generic_to_shared(&buffer[k][t]);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + k * 64 + t));
    }
    asm volatile("cp.async.commit_group;");
  }
  for (int k = 0; k < rounds; ++k) {
    asm volatile("cp.async.wait_group 2;");
    __syncthreads();
    float4 v = buffer[k % 4][(t + 1) % 64];
    out[k * 64 + t] = v;
    if (k + 3 < rounds) {
      unsigned to = __cvta_generic_to_shared(&buffer[(k + 3) % 4][t]);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + (k + 3) * 64 + t));
    }
    asm volatile("cp.async.commit_group;");
  }
}

// Exchange through shared memory between the lanes of a warp.
__global__ void rotate(const int* x, int* out) {
  __shared__ int cell[32];
  cell[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = cell[(threadIdx.x + 1) % 32];
}
}
"""

// Measures the largest errors of csrc/scalar_math.h against libm in double, over dense sweeps. Built and run by
// tests/test_scalar_math.py. Prints one line per function: its name and its largest error, which is relative for the
// exponentials, absolute for sin and cos, and the smaller of the two for log.
#include <cmath>
#include <cstdio>

#include "../../csrc/scalar_math.h"

int main() {
  double exponential = 0, power = 0, logarithm = 0, sine = 0, cosine = 0;
  for (int i = 0; i <= 4000000; ++i) {
    const float x = -86.0f * static_cast<float>(i) / 4000000.0f;
    const double exact = std::exp(static_cast<double>(x));
    exponential = std::fmax(exponential, std::fabs(qpt::exponential(x) - exact) / exact);
  }
  for (int i = -2000000; i <= 2000000; ++i) {
    const float x = 125.9f * static_cast<float>(i) / 2000000.0f;
    const double exact = std::exp2(static_cast<double>(x));
    power = std::fmax(power, std::fabs(qpt::quick_power_of_two(x) - exact) / exact);
  }
  for (int i = 1; i <= 1 << 24; i += 3) {  // the arguments of Box-Muller
    const float x = static_cast<float>(i) * 0x1p-24f;
    const double exact = std::log(static_cast<double>(x)), error = std::fabs(qpt::natural_log(x) - exact);
    logarithm = std::fmax(logarithm, error / std::fmax(1.0, std::fabs(exact)));
  }
  for (int i = -(1 << 24); i <= 1 << 24; i += 5) {
    const float turns = static_cast<float>(i) * 0x1p-23f;
    const double angle = 2 * M_PI * static_cast<double>(turns);
    const qpt::SinCos ours = qpt::sin_cos_turns(turns);
    sine = std::fmax(sine, std::fabs(ours.sin - std::sin(angle)));
    cosine = std::fmax(cosine, std::fabs(ours.cos - std::cos(angle)));
  }
  std::printf("exponential %.3g\nquick_power_of_two %.3g\nnatural_log %.3g\nsine %.3g\ncosine %.3g\n", exponential,
              power, logarithm, sine, cosine);
  // What must be exact: halves to even, quadrants, clamping.
  const bool exact = qpt::to_u8(0.5f) == 0 && qpt::to_u8(1.5f) == 2 && qpt::to_u8(254.5f) == 254 &&
                     qpt::to_u8(255.4f) == 255 && qpt::to_u8(-3.0f) == 0 && qpt::to_u8(1e9f) == 255 &&
                     qpt::nearest(-2.5f) == -2.0f && qpt::sin_cos_degrees(90.0f).cos == 0.0f &&
                     qpt::sin_cos_degrees(180.0f).sin == 0.0f && qpt::sin_cos_degrees(0.0f).cos == 1.0f &&
                     qpt::ceil_to_int(3.0f) == 3 && qpt::ceil_to_int(3.01f) == 4 && qpt::exponential(-200.0f) == 0.0f &&
                     qpt::exponential(0.0f) == 1.0f && qpt::natural_log(1.0f) == 0.0f;
  std::printf("exact %d\n", exact);
  return 0;
}

// 2^f for f in [-1/2, 1/2]: a minimax fit, relative error 2e-8 in float32. Included by each instruction set's file
// inside its namespace, which has Vec, broadcast and fma by then.
inline Vec exp2_fraction(Vec f) {
  Vec y = broadcast(1.534581243e-4f);
  y = fma(y, f, broadcast(1.339993090e-3f));
  y = fma(y, f, broadcast(9.618489072e-3f));
  y = fma(y, f, broadcast(5.550328642e-2f));
  y = fma(y, f, broadcast(2.402264625e-1f));
  y = fma(y, f, broadcast(6.931471825e-1f));
  y = fma(y, f, broadcast(1.0f));
  return y;
}

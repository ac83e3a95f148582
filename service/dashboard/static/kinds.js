// What a step's tokens go to, in the order in which they are stacked.

export const KINDS = [
  { key: "decode_tokens", name: "decode", color: "decode" },
  { key: "prefill_tokens", name: "prefill", color: "prefill" },
  { key: "train_forward_tokens", name: "training forward", color: "forward" },
  { key: "train_backward_tokens", name: "training backward", color: "backward" },
];

/** All tokens of a step. */
export function tokensOf(step) {
  return KINDS.reduce((sum, kind) => sum + step[kind.key], 0);
}

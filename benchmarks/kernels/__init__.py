"""The GPU kernels by themselves: what they cost, without a card, and how fast they are on one."""

"""What makes a registration good, as numbers to be lowered: terms over named tensors and the functions beneath."""

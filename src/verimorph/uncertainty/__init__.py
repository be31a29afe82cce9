"""How far off a registration may be: samples of transforms, spread of fields and labels, bounds, verdicts."""

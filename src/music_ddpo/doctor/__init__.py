"""`music-ddpo doctor`: checks of machine, weights, sound, first update and cost, before a long training."""

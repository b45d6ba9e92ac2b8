"""`music-ddpo doctor`: checks of machine, weights, sound, policy and cost, before a day is spent on a training."""

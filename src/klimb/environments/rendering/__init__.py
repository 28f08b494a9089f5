"""Pictures of environments: what draws the states of compiled ones, and how to draw without a screen."""

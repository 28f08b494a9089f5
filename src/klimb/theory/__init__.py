"""The theory of the lectures, executable: exact gradients, numerical checks of every statement, figures."""

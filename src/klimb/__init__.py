"""klimb: policy gradients that climb inside a trust region.

Every algorithm collects a batch, estimates advantages, and improves the policy; they differ only in *improve*.

The public names stand in `__init__.pyi`. They are loaded when they are first used, so that `import klimb` and
`klimb --help` answer at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The networks of a run: the options of this room."""

from __future__ import annotations

from pydantic import model_validator

from klimb.fields import Count, LayerSizes, Name, Width, checked
from klimb.policies.action_spec import Exploration, GaussianStyle
from klimb.policies.layers import Initialization, LayerOptions, MemoryKind
from klimb.policies.mlp import Activation
from klimb.policies.pictures import NETWORKS


@checked
class NetworkOptions:
    """The networks of a run."""

    normalize_observations: bool = True
    """Scale observations by their running mean and standard deviation, kept inside the policy."""
    hidden: LayerSizes | None = None
    """Hidden layer sizes, of the critic too unless critic_hidden is given; none: 64 64, no layers behind pictures."""
    critic_hidden: LayerSizes | None = None
    """Hidden layer sizes of the critic; none: the same as for the policy."""
    activation: Activation = "tanh"
    """Activation of the hidden layers."""
    layer_norm: bool = False
    """Normalise the units of each hidden layer before its activation, in policy and critic."""
    residual: bool = False
    """Add the input of a hidden layer to its output where both have one size, in policy and critic."""
    initialization: Initialization = "orthogonal"
    """Distribution of the initial weights of policy and critic."""
    initial_log_std: float = 0.0
    """Initial log standard deviation of a Gaussian policy; the unit of σ is the half-width of the action box."""
    state_dependent_std: bool = False
    """Compute the standard deviation from the observation; continuous actions only."""
    tanh_squash: bool = False
    """Squash Gaussian actions into the action box by tanh instead of clipping them; bounded boxes only."""
    log_std_bounds: tuple[float, float] | None = None
    """Minimum and maximum log standard deviation of a Gaussian policy, as for initial_log_std; none: no bounds."""
    exploration: Exploration = "independent"
    """Noise of Gaussian actions. independent: drawn at every step; gsde: a function of the state, smooth in time."""
    network: Name | None = None
    """Network that reads pictures: minatar, nature, impala, or mlp for none; or a function of your own, module:name."""
    critic_network: Name | None = None
    """Network that reads pictures in the critic; none: the same as for the policy."""
    memory: MemoryKind | None = None
    """Memory of policy and critic, a recurrent layer behind what reads observations: gru or lstm; none: no memory."""
    memory_size: Width = 64
    """Units of that layer."""
    chunk_steps: Count | None = None
    """Steps over which derivatives flow back in time, a divisor of num_steps; none: over a whole rollout."""
    critic_memory: bool = True
    """Whether the critic has a memory too; off where it observes what the policy has to remember."""
    critic_observes: tuple[Name, ...] | None = None
    """Parts of Dict observations that only the critic sees; none: both see all parts."""
    policy: Name | None = None
    """A function of your own, module:name, that makes the policy: (observations, actions, key) -> policy."""
    critic: Name | None = None
    """A function of your own, module:name, that makes the critic: (observations, key) -> critic."""

    @model_validator(mode="after")
    def _require_valid_style(self) -> NetworkOptions:
        self.style.require_valid(self.initial_log_std, self.hidden, self.memory)
        return self

    @property
    def own(self) -> dict[str, str]:
        """The functions of the user's own that make policy and critic, `module:name`, by the option that names them."""
        named = {name: getattr(self, name) for name in ("policy", "critic", "network", "critic_network")}
        return {name: value for name, value in named.items() if value is not None and value not in NETWORKS}

    @property
    def own_policy(self) -> str | None:
        """The function of the user's own without which policies in files can't be read; None where there is none."""
        return self.own.get("policy", self.own.get("network"))

    @property
    def style(self) -> GaussianStyle:
        """How the network's outputs become a Gaussian."""
        return GaussianStyle(self.state_dependent_std, self.tanh_squash, self.log_std_bounds, self.exploration)

    @property
    def layers(self) -> LayerOptions:
        """What the hidden layers do besides a product and an activation."""
        return LayerOptions(self.layer_norm, self.residual, self.initialization)

"""A policy of klimb's own networks in NumPy alone.

`klimb export RUN -o policy.py` puts the source of this file into the file that it writes, behind the policy's
description and arrays, so that nothing in it may import klimb, and it has to run with Python 3.8 and NumPy 1.20.

Arrays have any number of leading axes, written `...`: none for one observation, `[B]` for a batch.
"""

import base64

import numpy as np

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    # tanh does not overflow where exp(-x) would.
    "silu": lambda x: 0.5 * x * (1 + np.tanh(0.5 * x)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3))),
}


class Policy:
    """about: the description, as klimb's export makes it. arrays: from their names to float32 arrays."""

    def __init__(self, about, arrays):
        self.about, self.arrays = about, arrays

    def act(self, obs, *, deterministic=True, rng=None, action_mask=None):
        """The action for the environment: in its units and within its bounds.

        obs: as the environment gives it, one or any number of leading axes. deterministic: the most probable action, or
        the mean; else a sample. rng: a numpy.random.Generator for samples. action_mask: flags of the allowed choices,
        for a policy that was trained with a mask.
        """
        if self.about["memory"]:
            raise ValueError("the policy has memory: action, carry = act_with_memory(obs, carry), None at first")
        return self._act(obs, None, deterministic, rng, action_mask)[0]

    def act_with_memory(self, obs, carry, *, deterministic=True, rng=None, action_mask=None):
        """The action, and what the policy remembers after the step. carry: before it; None where episodes begin."""
        if not self.about["memory"]:
            raise ValueError("the policy has no memory: act(obs) is for it")
        return self._act(obs, carry, deterministic, rng, action_mask)

    def _act(self, obs, carry, deterministic, rng, action_mask):
        obs, action_mask = self._without_mask(obs, action_mask)
        row = flatten(self.about["observations"], obs)
        if not deterministic and rng is None:
            rng = np.random.default_rng()
        lead = row.shape[: row.ndim - self.about["axes"]]
        if self.about["memory"] and carry is None:
            carry = np.zeros((*lead, self.about["carry_size"]), np.float32)
        mask = None if action_mask is None else self._flags(action_mask, lead)
        parameters, carry = self.distribution(row, mask, carry)
        return action_of(self.about["actions"], self.about, parameters, None if deterministic else rng), carry

    def _without_mask(self, obs, action_mask):
        """The observation, and the mask that belongs to it: given, or a part of the observation."""
        if not self.about["num_choices"]:
            if action_mask is not None:
                raise ValueError("the policy was trained without an action mask: leave action_mask out")
            return obs, None
        if action_mask is None and hasattr(obs, "keys") and "action_mask" in obs:
            return {name: part for name, part in obs.items() if name != "action_mask"}, obs["action_mask"]
        if action_mask is None and not hasattr(obs, "keys") and not isinstance(obs, tuple):
            row, size = np.asarray(obs), size_of(self.about["observations"])
            if row.shape[-1:] == (size + self.about["num_choices"],):  # the mask stands behind the observation
                return row[..., :size], row[..., size:]
        if action_mask is None:
            raise ValueError("the policy was trained with an action mask, and needs it: give action_mask=")
        return obs, action_mask

    def _flags(self, action_mask, lead):
        """Flags of the choices, `[..., choices]`. lead: the leading axes of the observation."""
        flags = np.asarray(action_mask) > 0.5
        count = self.about["num_choices"]
        if flags.shape[: len(lead)] != lead or flags.size != int(np.prod(lead)) * count:
            raise ValueError(f"the action mask has the shape {flags.shape}, and {(*lead, count)} is expected")
        flags = flags.reshape((*lead, count))
        sizes = choice_sizes(self.about["actions"])
        if not np.logical_or.reduceat(flags, np.cumsum([0, *sizes[:-1]]), axis=-1).all():
            raise ValueError("the action mask allows no choice at all for a part of the action")
        return flags

    def distribution(self, row, mask=None, carry=None):
        """The parameters of the distribution over actions, nested as the actions are, and what is remembered.

        row: an observation as `flatten` returns it. mask: of the choices, or None. carry: what is remembered, or None.
        """
        x = self.encode(row)
        if carry is not None:
            carry = self.remember(x, carry)
            x = carry[..., : self.about["memory_size"]]
        for layer in range(len(self.about["hidden"])):
            x = self.dense(x, layer)
        last = len(self.about["hidden"])
        output = x @ self.arrays[f"network.weights[{last}]"] + self.arrays[f"network.biases[{last}]"]
        log_std = self.arrays.get("log_std")
        if self.about["exploration"] == "gsde":
            log_std = 0.5 * np.log(np.square(x) @ np.exp(2 * log_std) + np.float32(1e-6))
        return parameters_of(self.about["actions"], self.about, output, log_std, mask), carry

    def encode(self, row):
        """The features that the dense layers read, or the memory."""
        parts = []
        if self.about["normalizer"] is not None:
            parts.append(self.scale(row if self.about["columns"] is None else row[..., self.about["columns"]]))
        for picture in self.about["pictures"]:
            shape, start = picture["shape"], picture["start"]
            if start is not None:  # a part of a vector
                part = row[..., start : start + int(np.prod(shape))]
                parts.append(self.see(picture, part.reshape(part.shape[:-1] + tuple(shape))))
            else:
                parts.append(self.see(picture, row))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def scale(self, x):
        """Numbers in standard deviations from the mean of the observations in training, clipped."""
        limits, name = self.about["normalizer"], self.about["normalizer"]["name"]
        mean, variance = self.arrays[name + "mean"], self.arrays[name + "variance"]
        scale = np.where(variance > np.float32(limits["variance_floor"]), np.sqrt(variance), np.float32(1))
        x = (x - mean) / scale
        return x if limits["clip"] is None else np.clip(x, -limits["clip"], limits["clip"])

    def see(self, picture, x):
        """The features of a picture, `[..., *shape]`: convolutions and a dense layer."""
        name = picture["name"]
        x = channels_last(x, picture).astype(np.float32) / np.float32(picture["brightest"])
        for number, stride in enumerate(picture["strides"]):
            stage = f"{name}stages[{number}]."
            if picture["network"] == "impala":
                x = self.residual_stage(stage, x)
            else:
                x = np.maximum(self.convolve(stage, x, stride, padded=False), 0)
        flat = np.maximum(x, 0).reshape((*x.shape[:-3], -1))
        if not picture["strides"]:
            return flat
        return np.maximum(flat @ self.arrays[name + "dense.weight"] + self.arrays[name + "dense.bias"], 0)

    def residual_stage(self, name, x):
        """A convolution, a maximum over 3 by 3 windows that halves the size, and two residual blocks."""
        x = self.convolve(name + "first.", x, 1, padded=True)
        x = np.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
        x = windows(x, 3, 3, 2).max((-2, -1))
        for block in (0, 1):
            inner = self.convolve(f"{name}blocks[{block}][0].", np.maximum(x, 0), 1, padded=True)
            x = x + self.convolve(f"{name}blocks[{block}][1].", np.maximum(inner, 0), 1, padded=True)
        return x

    def convolve(self, name, x, stride, padded):
        """padded: whether zeros around the picture keep its size."""
        kernel, bias = self.arrays[name + "kernel"], self.arrays[name + "bias"]
        high, wide = kernel.shape[:2]
        if padded:
            around = [((high - 1) // 2, high // 2), ((wide - 1) // 2, wide // 2), (0, 0)]
            x = np.pad(x, [(0, 0)] * (x.ndim - 3) + around)
        return np.tensordot(windows(x, high, wide, stride), kernel, axes=([-3, -2, -1], [2, 0, 1])) + bias

    def remember(self, features, carry):
        """What is remembered after a step. carry: before it."""
        size, arrays = self.about["memory_size"], self.arrays
        projected = features @ arrays["memory.input_weight"] + arrays["memory.bias"]
        recurrent = carry[..., :size] @ arrays["memory.recurrent_weight"]
        if self.about["memory"] == "lstm":
            i, f, g, o = np.split(projected + recurrent, 4, axis=-1)
            c = sigmoid(f) * carry[..., size:] + sigmoid(i) * np.tanh(g)
            return np.concatenate([sigmoid(o) * np.tanh(c), c], axis=-1)
        r, z, _ = np.split(sigmoid(projected + recurrent), 3, axis=-1)
        n = np.tanh(projected[..., 2 * size :] + r * (recurrent[..., 2 * size :] + arrays["memory.reset_bias"]))
        return n + z * (carry - n)

    def dense(self, x, layer):
        """Hidden layer number `layer`."""
        units = x @ self.arrays[f"network.weights[{layer}]"] + self.arrays[f"network.biases[{layer}]"]
        if self.about["layer_norm"]:
            centred = units - units.mean(-1, keepdims=True)
            units = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(1e-5))
            units = units * self.arrays[f"network.norms[{layer}].scale"]
            units = units + self.arrays[f"network.norms[{layer}].offset"]
        units = ACTIVATIONS[self.about["activation"]](units)
        return units + x if self.about["residual"] and units.shape == x.shape else units

    def difference(self, recorded):
        """The largest difference between recorded actions and those computed here, relative to their largest number.

        recorded: arrays by name: obs, action_mask and carry where the policy reads them, and the actions.
        """
        parameters, _ = self.distribution(recorded["obs"], recorded.get("action_mask"), recorded.get("carry"))
        actions = self.about["actions"]
        computed = named_parts(actions, action_of(actions, self.about, parameters, None), "action")
        pairs = [(x.astype(float), recorded[name].astype(float)) for name, x in computed.items()]
        return max(np.max(np.abs(x - its)) / (np.max(np.abs(its)) or 1) for x, its in pairs)


def flatten(spec, obs):
    """An observation as the network reads it, one array. obs: as the environment gives it, or such an array."""
    kind = spec["kind"]
    if kind == "parts" and (isinstance(obs, tuple) or hasattr(obs, "keys")):
        own = obs if "names" not in spec else [obs[name] for name in spec["names"]]
        if len(own) != len(spec["parts"]):
            raise ValueError(f"the observation has {len(own)} parts, and the policy reads {len(spec['parts'])}")
        rows = [as_vector(part, flatten(part, x)) for part, x in zip(spec["parts"], own)]
        lead = np.broadcast_shapes(*(row.shape[:-1] for row in rows))
        return np.concatenate([np.broadcast_to(row, lead + row.shape[-1:]) for row in rows], axis=-1)
    if kind == "picture":
        picture = np.asarray(obs)
        if spec["numbers"] == "uint8" and picture.dtype != np.uint8:
            require((picture >= 0) & (picture <= 255) & (picture == np.round(picture)), "whole numbers from 0 to 255")
        return fitting(picture.astype(spec["numbers"]), spec["shape"])
    row = np.asarray(obs, np.float32)
    if kind == "box":
        space, flat = tuple(spec.get("space_shape", spec["shape"])), tuple(spec["shape"])
        # A batch of vectors as long as the first axis of the space is taken for vectors.
        vectors = row.shape[-1:] == flat and space[-1:] != flat
        if row.shape[max(row.ndim - len(space), 0) :] == space and not vectors:
            row = row.reshape(row.shape[: row.ndim - len(space)] + tuple(spec["shape"]))
        return fitting(row, spec["shape"])
    if kind == "one_hot":
        one_hot = row.shape[-1:] == (spec["n"],) and np.isin(row, (0, 1)).all() and (row.sum(-1) == 1).all()
        if one_hot:
            return row
        numbers = row - spec.get("start", 0)
        require((numbers >= 0) & (numbers < spec["n"]) & (numbers == np.round(numbers)), "in the range of the space")
        return np.eye(spec["n"], dtype=np.float32)[numbers.astype(int)]
    if kind == "multi_one_hot":
        n, space = np.array(spec["n"]), tuple(spec["space_shape"])
        lead = row.shape[: row.ndim - len(space)]
        if row.shape[len(lead) :] == space:
            numbers = row.reshape((*lead, -1)) - np.array(spec["start"])
            require((numbers >= 0) & (numbers < n) & (numbers == np.round(numbers)), "in the range of the space")
            row = np.zeros((*lead, n.sum()), np.float32)
            np.put_along_axis(row, numbers.astype(int) + np.cumsum(n) - n, 1, axis=-1)
        return fitting(row, [n.sum()])
    return fitting(row, [size_of(spec)])


def require(good, what):
    """ValueError where not all numbers of an observation are what they should be."""
    if not np.all(good):
        raise ValueError(f"the observation has numbers that are not {what}")


def size_of(spec):
    """The numbers of an observation as a vector."""
    if spec["kind"] == "parts":
        return sum(map(size_of, spec["parts"]))
    return int(np.prod(spec["shape"])) if "shape" in spec else int(np.sum(spec["n"]))


def as_vector(spec, row):
    """A part of an observation as a vector of float32."""
    axes = len(spec.get("shape", [0]))
    return row.reshape((*row.shape[: row.ndim - axes], -1)).astype(np.float32)


def fitting(row, shape):
    """The array, if it has the shape behind any leading axes."""
    if row.shape[max(row.ndim - len(shape), 0) :] != tuple(shape):
        raise ValueError(f"the observation has the shape {row.shape}, and the policy reads {tuple(shape)}")
    return row


def channels_last(x, picture):
    """Pictures `[..., height, width, channels]`."""
    axes = len(picture["shape"])
    if axes == 2:
        return x[..., None]
    if axes == 3:
        return np.moveaxis(x, -3, -1) if picture["channels_first"] else x
    stacked = np.moveaxis(x, -4, -2)
    return stacked.reshape((*stacked.shape[:-2], -1))


def windows(x, high, wide, stride):
    """What a window sees as it moves over pictures: `[..., h, w, channels, high, wide]`."""
    views = np.lib.stride_tricks.sliding_window_view(x, (high, wide), axis=(-3, -2))
    return views[..., ::stride, ::stride, :, :, :]


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def parameters_of(actions, about, output, log_std, mask):
    """The parameters of the distribution over these actions.

    output: of the network. log_std: of all boxes, or None. mask: flags of the choices of all parts, or None.
    """
    kind = actions["kind"]
    if kind == "product":
        stds = None if log_std is None else cut(log_std, [num_log_std(part) for part in actions["parts"]])
        outputs = cut(output, [num_outputs(part, about) for part in actions["parts"]])
        masks = None if mask is None else cut(mask, [num_choices(part) for part in actions["parts"]])
        own = [
            parameters_of(
                part, about, outputs[i], None if stds is None else stds[i], None if mask is None else masks[i]
            )
            for i, part in enumerate(actions["parts"])
        ]
        return dict(zip(actions["names"], own)) if "names" in actions else tuple(own)
    if kind == "box":
        return gaussian(actions, about, output, log_std)
    if mask is not None:
        if kind == "multi_binary":  # log odds of 1, and two flags for each: whether 0 and 1 are allowed
            flags = mask.reshape((*output.shape, 2))
            output = np.where(flags[..., 1], np.where(flags[..., 0], output, np.inf), -np.inf)
        else:
            output = np.where(mask, output, -np.inf)
    return {"logits": output.astype(np.float32)}


def gaussian(actions, about, output, log_std):
    """Mean and log standard deviation in the environment's units; with tanh_squash, before the tanh."""
    dimensions = len(actions["low"])
    if about["state_dependent_std"]:
        log_std = log_std + output[..., dimensions:]
        output = output[..., :dimensions]
    if about["log_std_bounds"] is not None:
        log_std = np.clip(log_std, *np.array(about["log_std_bounds"], np.float32))
    if about["tanh_squash"]:
        return {"mean": output, "log_std": np.broadcast_to(log_std, output.shape)}
    center, half_width = box(actions)[2:]
    mean = center + half_width * output
    return {"mean": mean, "log_std": np.broadcast_to(log_std + np.log(half_width), mean.shape)}


def action_of(actions, about, parameters, rng):
    """The action of the environment. rng: for a sample; None for the mode."""
    kind = actions["kind"]
    if kind == "product":
        keys = actions.get("names", range(len(actions["parts"])))
        own = [action_of(part, about, parameters[key], rng) for part, key in zip(actions["parts"], keys)]
        return dict(zip(actions["names"], own)) if "names" in actions else tuple(own)
    if kind == "box":
        low, high, center, half_width = box(actions)
        action = parameters["mean"]
        if rng is not None:
            action = action + np.exp(parameters["log_std"]) * rng.standard_normal(action.shape, np.float32)
        if about["tanh_squash"]:
            action = center + half_width * np.tanh(action)
        return shaped(np.clip(action, low, high), actions.get("shape"))
    logits = parameters["logits"]
    if kind == "discrete":
        return (choose(logits, rng) + actions.get("start", 0)).astype(np.int32)[()]
    if kind == "multi_binary":
        chosen = choose(np.stack([np.zeros_like(logits), logits], axis=-1), rng)
        return shaped(chosen, actions["shape"]).astype(np.int8)
    chosen = np.stack([choose(own, rng) for own in cut(logits, actions["n"])], axis=-1) + np.array(actions["start"])
    return shaped(chosen, actions["shape"]).astype(actions["dtype"])


def box(actions):
    """Lowest and highest numbers, and the middle and half the width of what is bounded; 0 and 1 of what is not."""
    low = np.array([-np.inf if x is None else x for x in actions["low"]])
    high = np.array([np.inf if x is None else x for x in actions["high"]])
    scaled = np.isfinite(low) & np.isfinite(high) & (low < high)
    finite_low, finite_high = np.where(scaled, low, 0), np.where(scaled, high, 0)
    center, half_width = (finite_low + finite_high) / 2, np.where(scaled, (finite_high - finite_low) / 2, 1)
    # Rounded into the box.
    low32, high32 = low.astype(np.float32), high.astype(np.float32)
    low32 = np.where(low32 < low, np.nextafter(low32, high32), low32)
    high32 = np.where(high32 > high, np.nextafter(high32, low32), high32)
    return low32, high32, center.astype(np.float32), half_width.astype(np.float32)


def choose(logits, rng):
    """The best choice, or, with rng, one with the probability that its logit gives it. `[..., n]` to `[...]`."""
    # The largest of logits with Gumbel noise is a sample.
    return (logits if rng is None else logits + rng.gumbel(size=logits.shape)).argmax(-1)


def shaped(action, shape):
    """`[..., D]` in the shape of the space."""
    return action if shape is None else action.reshape(action.shape[:-1] + tuple(shape))


def cut(array, sizes):
    """Consecutive parts of the last axis."""
    return np.split(array, np.cumsum(sizes)[:-1], axis=-1)


def num_outputs(actions, about):
    """Outputs of the network for an action."""
    if actions["kind"] == "product":
        return sum(num_outputs(part, about) for part in actions["parts"])
    if actions["kind"] == "box":
        return len(actions["low"]) * (2 if about["state_dependent_std"] else 1)
    return int(np.prod(actions["shape"])) if actions["kind"] == "multi_binary" else int(np.sum(actions["n"]))


def num_log_std(actions):
    """Standard deviations that are parameters of the policy."""
    if actions["kind"] == "product":
        return sum(map(num_log_std, actions["parts"]))
    return len(actions["low"]) if actions["kind"] == "box" else 0


def choice_sizes(actions):
    """How many choices each discrete number of an action has; a mask has a flag for each of them."""
    if actions["kind"] == "product":
        return [size for part in actions["parts"] for size in choice_sizes(part)]
    if actions["kind"] == "multi_binary":
        return [2] * int(np.prod(actions["shape"]))
    if actions["kind"] == "discrete":
        return [actions["n"]]
    return [] if actions["kind"] == "box" else list(actions["n"])


def num_choices(actions):
    """Flags of the action mask."""
    return sum(choice_sizes(actions))


def named_parts(actions, action, name):
    """The parts of an action by name, "action.PART"; "action" for one without parts."""
    if actions["kind"] != "product":
        return {name: action}
    keys = actions.get("names", range(len(actions["parts"])))
    parts = [named_parts(part, action[key], f"{name}.{key}") for part, key in zip(actions["parts"], keys)]
    return {name: x for part in parts for name, x in part.items()}


def decoded(dtype, shape, text):
    """An array from its bytes in base 64, little-endian."""
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)

"""Pgx (Koyama et al. 2023): board games and MinAtar in JAX, for one player, or against an opponent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from klimb.environments.rendering.observed import ObservedPictures
from klimb.environments.rendering.renderer import Renderer
from klimb.environments.suites.spaces import box
from klimb.environments.suites.suite import Step, SuiteEnvironment, import_library, legacy_key, require_known
from klimb.errors import UnsupportedSpace
from klimb.policies.picture_observations import PictureObservations

Opponent = Callable[[PRNGKeyArray, Array, Array], Array]
"""The other player: its action from a key, what it observes, and the mask of its legal actions."""


def random_opponent(key: PRNGKeyArray, obs: Array, mask: Array) -> Array:
    """A legal action, all with the same probability.

    key: of the draw. obs: is not used. mask: of the legal actions.
    """
    return jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf))


class Game(NamedTuple):
    """State of a game: Pgx's, and which player the policy is."""

    board: PyTree
    player: Int[Array, ""]


class PgxEnvironment(SuiteEnvironment):
    """A game of Pgx, of which the policy makes one player's moves: the one that moves first, or the other one, with
    the same probability. The opponent's moves are part of a step.

    id: the name that `klimb.make` takes. env: Pgx's. opponent: of games for two. Raises UnsupportedSpace for more
    players.
    """

    packages = ("pgx",)

    def __init__(self, id: str, env: Any, opponent: Opponent = random_opponent) -> None:
        if env.num_players > 2:
            raise UnsupportedSpace(f"{id} is for {env.num_players} players, and klimb plays games of one or two")
        self.opponent = opponent
        shapes = jax.eval_shape(env.init, jax.random.key_data(jax.random.key(0)))
        # Boards are flags and small numbers; flags with channels are pictures.
        flags = shapes.observation.dtype == jnp.bool_
        low, high = (0.0, 1.0) if flags else (-np.inf, np.inf)
        self._board: tuple[int, ...] = shapes.observation.shape
        space = box(self._board, low, high)
        super().__init__(id, env, space, gymnasium.spaces.Discrete(shapes.legal_action_mask.shape[0]), masked=True)

    def renderer(self) -> Renderer:
        """The layers of the board that the policy sees, each in a colour of its own: Pgx draws vectors, not pixels."""
        if len(self._board) != 3:
            return super().renderer()
        return ObservedPictures(PictureObservations(self._board, "float32"))

    def begin(self, key: PRNGKeyArray) -> Step:
        """A new game, after the opponent's first move where it begins. key: that it is drawn with."""
        key_game, key_player, key_moves = jax.random.split(key, 3)
        board = self.env.init(legacy_key(key_game))
        player = jax.random.randint(key_player, (), 0, self.env.num_players)
        return self._until_its_turn(key_moves, Game(board, player), jnp.float32(0))

    def advance(self, key: PRNGKeyArray, state: Game, action: Array) -> Step:
        """A move, and the opponent's moves after it.

        key: for chance and opponent. state: before the move. action: the move.
        """
        key_move, key_others = jax.random.split(key)
        board = self.env.step(state.board, action, legacy_key(key_move))
        reward = board.rewards[state.player].astype(jnp.float32)
        return self._until_its_turn(key_others, Game(board, state.player), reward)

    def _until_its_turn(self, key: PRNGKeyArray, game: Game, reward: Array) -> Step:
        """The opponent's moves until the policy has to move again, or the game ends. reward: up to here."""

        def is_others(carry: tuple) -> Array:
            board, _, _ = carry
            return (board.current_player != game.player) & ~board.terminated & ~board.truncated

        def move(carry: tuple) -> tuple:
            board, reward, key = carry
            key, key_choice, key_move = jax.random.split(key, 3)
            action = self.opponent(key_choice, board.observation, board.legal_action_mask)
            board = self.env.step(board, action, legacy_key(key_move))
            return board, reward + board.rewards[game.player].astype(jnp.float32), key

        board = game.board
        if self.env.num_players > 1:
            board, reward, _ = jax.lax.while_loop(is_others, move, (board, reward, key))
        return Step(
            Game(board, game.player),
            board.observation,
            board.legal_action_mask,
            reward=reward,
            terminated=board.terminated,
            truncated=board.truncated & ~board.terminated,
        )


def make_pgx(name: str) -> PgxEnvironment:
    """The game `name`, e.g. `2048`; games for two against an opponent that makes random legal moves.

    Raises MissingExtra if Pgx is not installed, EnvironmentNotFound for an unknown name, and UnsupportedSpace for games
    of more than two players.
    """
    pgx = import_library("pgx", f"pgx:{name}", "pgx")
    require_known(name, pgx.available_envs(), "Pgx")
    return PgxEnvironment(f"pgx:{name}", pgx.make(name))

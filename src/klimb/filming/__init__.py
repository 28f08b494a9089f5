"""Films: one episode of a policy, drawn step by step."""

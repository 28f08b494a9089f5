"""Policies for others: a folder that says what a policy is and how good it is, and the Hugging Face Hub."""

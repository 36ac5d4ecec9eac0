"""Prompt ids → rollout trees, and a thinking that can be asked: transformers, vLLM, a server."""

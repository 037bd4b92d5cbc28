"""Answers written token by token, of many requests for many adapters: who joins, what a step does, what is said."""

"""Fuzzing over real connections: hostile messages to a real daemon, and a judge who knows what was accepted.

A message is a function of (seed, number, epoch) alone, so each can be made again without those before it.
"""

"""Simulated data whose truth is known, and how often an interval covers it."""

"""Healing: what the tuned model said of each answer token, kept before layers go, and the loss that learns from it."""

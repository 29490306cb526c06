"""Longhaul: distributed finetuning of Stable Diffusion, made to run for months."""

"""Simulated patients: X-rays, ECGs, labs and vital signs from common causes."""

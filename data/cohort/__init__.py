"""Simulated patients: X-rays, ECGs and laboratory values from common causes."""

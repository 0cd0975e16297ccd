"""Reduced precision: fp16 and int8."""

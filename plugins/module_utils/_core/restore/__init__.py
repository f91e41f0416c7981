# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a generation back: plan, places, copying, exchange, journal, what is kept."""

# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a backup back. A `request` becomes a plan, in place, into a directory, of a dump or of a table, and the plan executes itself."""

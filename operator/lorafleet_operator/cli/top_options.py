"""The options of `lorafleet top` and `kubectl lorafleet top`, which are the same."""

from __future__ import annotations

import argparse


def add_top_options(command: argparse.ArgumentParser) -> None:
    """What to show of which base models, and how often."""
    command.add_argument(
        "what", metavar="WHAT", nargs="?", choices=("replicas", "tenants"), default="replicas",
        help="replicas: requests, pages, tokens per second (default); tenants: who receives what, and who waits",
    )  # fmt: skip
    command.add_argument("-n", "--namespace", help="of one namespace's base models only (default: all of them)")
    command.add_argument("-b", "--base-model", metavar="NAME", help="of one base model only (default: all of them)")
    command.add_argument("--once", action="store_true", help="print once and exit")
    command.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="default: %(default)s")

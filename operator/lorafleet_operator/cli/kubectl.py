"""`kubectl lorafleet`: what a cluster's fleet does, for people. kubectl finds it by its name on the PATH."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lorafleet_operator import __version__
from lorafleet_operator.cli.dispatch import dispatch
from lorafleet_operator.cli.top_options import add_top_options

EXAMPLES = """\
examples:
  kubectl lorafleet status                   every object, and why what is not Ready is not
  kubectl lorafleet top                      replicas as they work: requests, pages, adapters, tokens per second
  kubectl lorafleet top tenants              tenants: service, share, who waits, tokens per second
  kubectl lorafleet chat pirate -t acme      talk to an adapter as one of acme's clients
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the plugin; `module` names the module whose `run` is the command."""
    root = argparse.ArgumentParser(
        prog="kubectl lorafleet", description="Look at a lorafleet in a cluster, and talk to it.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    root.add_argument("--version", action="version", version=f"lorafleet {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    status = _command(commands, "status", "print every object, and why what is not Ready is not")
    status.add_argument("-n", "--namespace", help="of one namespace only (default: all of them)")
    add_top_options(_command(commands, "top", "show replicas as they work, or their tenants, until Ctrl-C"))
    chat = _command(commands, "chat", "talk to a model")
    chat.add_argument("model", metavar="MODEL", help="a base model's or an adapter's served name")
    chat.add_argument("-m", "--message", help="say this, print the answer and exit (default: a conversation)")
    chat.add_argument("-t", "--tenant", help="as this tenant, with its first key (needs the right to read its Secret)")
    chat.add_argument("--key", help="an API key (default: $LORAFLEET_API_KEY)")
    chat.add_argument("--gateway", metavar="URL", help="default: a port-forward to the gateway's Service")
    chat.add_argument("--system-namespace", default="lorafleet-system", help="where the gateway is: %(default)s")
    chat.add_argument("--service", default="lorafleet-gateway", help="the gateway's Service: %(default)s")
    chat.add_argument("--max-tokens", type=int, default=512, help="default: %(default)s")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 failed or something is not Ready, 2 wrongly asked, 130 interrupted."""
    return dispatch(parser(), argv)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(module=f"lorafleet_operator.cli.cluster_{name}")
    command.add_argument("--kubeconfig", help="default: $KUBECONFIG, else ~/.kube/config")
    return command

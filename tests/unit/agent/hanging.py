"""A program beside the agent that starts and never says so; it ends with its socket."""

import socket
import sys


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as agent:
        while agent.recv(4096):
            pass


if __name__ == "__main__":
    main()

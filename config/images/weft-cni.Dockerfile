# weft-cni: the CNI plugin, and the agent that installs it. The same content as the archive of `make images`, for people with a container engine:
#   make images && docker build -f config/images/weft-cni.Dockerfile -t weft-cni:dev .
FROM scratch
COPY config/images/passwd config/images/group /etc/
COPY --chmod=755 target/images/weft-cni /usr/local/bin/weft-cni
ENV PATH=/usr/local/bin:/usr/bin:/bin
WORKDIR /
USER 0:0
LABEL org.opencontainers.image.title=weft-cni
ENTRYPOINT ["/usr/local/bin/weft-cni"]

# weft-operator: the reconciler. The same content as the archive of `make images`, for people with a container engine:
#   make images && docker build -f config/images/weft-operator.Dockerfile -t weft-operator:dev .
FROM scratch
COPY config/images/passwd config/images/group /etc/
COPY --chmod=755 target/images/weft-operator /usr/local/bin/weft-operator
ENV PATH=/usr/local/bin:/usr/bin:/bin
WORKDIR /
USER 65532:65532
LABEL org.opencontainers.image.title=weft-operator
ENTRYPOINT ["/usr/local/bin/weft-operator"]

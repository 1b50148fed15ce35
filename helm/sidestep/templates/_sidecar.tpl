{{/*
The sidecar of a pod, for charts that prefer a library to the webhook. Depend on this chart with controlplane.enabled=false and
injector.enabled=false, and write in a pod spec:

  initContainers:
    {{- include "sidestep.sidecar.container" (dict "root" $ "values" .Values.sidestep) | nindent 4 }}
  containers:
    - name: app
      env: {{- include "sidestep.sidecar.appEnv" (dict "root" $ "values" .Values.sidestep) | nindent 8 }}
      volumeMounts: {{- include "sidestep.sidecar.appMounts" (dict "root" $ "values" .Values.sidestep) | nindent 8 }}
  volumes:
    {{- include "sidestep.sidecar.volumes" (dict "root" $ "values" .Values.sidestep) | nindent 4 }}

`values` are this chart's own values (`.Values` here, the sub-chart's key elsewhere). The injector gets the same text as its template.
*/}}
{{- define "sidestep.sidecar.container" -}}
{{- $values := .values -}}
{{- $sidecar := $values.sidecar -}}
{{- $root := merge (dict "Values" $values) (omit .root "Values") -}}
- name: sidestep
  image: {{ include "sidestep.image" (list $root $values.images.sidecar) }}
  imagePullPolicy: {{ $values.images.pullPolicy }}
  command: [sidestep-sidecar]
  # A native sidecar: started before the app, ended after it, so that there is an answer as long as the app asks.
  restartPolicy: Always
  ports:
    - {name: sidestep-http, containerPort: 9192}
  env:
    - {name: SIDESTEP_POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: SIDESTEP_POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: SIDESTEP_POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    - {name: SIDESTEP_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: SIDESTEP_CONTAINER_NAME, value: sidestep}
    - {name: SIDESTEP_SIDECAR_NAME, value: $(SIDESTEP_POD_NAMESPACE).$(SIDESTEP_POD_NAME)}
    - {name: SIDESTEP_TENANT, value: {{ $sidecar.tenant | quote }}}
    - {name: SIDESTEP_CONTROL_PLANE, value: {{ include "sidestep.controlPlaneAddress" $root | quote }}}
    - {name: SIDESTEP_LISTEN, value: "127.0.0.1:9191,unix:///run/sidestep/pod/sidecar.sock"}
    - {name: SIDESTEP_HTTP_LISTEN, value: "$(POD_IP):9192"}
    - {name: SIDESTEP_DATA_DIR, value: /var/lib/sidestep}
    - {name: SIDESTEP_WORKERS, value: {{ $sidecar.workers | quote }}}
    - {name: SIDESTEP_JOURNAL_MAX, value: {{ $sidecar.journalMax | quote }}}
    - {name: SIDESTEP_STORE_MAX, value: {{ $sidecar.storeMax | quote }}}
    - {name: SIDESTEP_SOFT_STALE, value: {{ $sidecar.softStale | quote }}}
    - {name: SIDESTEP_HARD_STALE, value: {{ $sidecar.hardStale | quote }}}
    {{- if $sidecar.callersSecret }}
    - {name: SIDESTEP_CALLERS, value: /etc/sidestep/callers/callers.yaml}
    {{- end }}
    {{- if eq $sidecar.tls.mode "none" }}
    - {name: SIDESTEP_CONTROL_PLANE_INSECURE, value: "true"}
    {{- else }}
    {{- $names := eq $sidecar.tls.mode "spiffe" | ternary $sidecar.tls.csi (dict "certificate" "tls.crt" "key" "tls.key" "ca" "ca.crt") }}
    - {name: SIDESTEP_CONTROL_PLANE_TLS_CA, value: /etc/sidestep/tls/{{ $names.ca }}}
    - {name: SIDESTEP_CONTROL_PLANE_TLS_CERT, value: /etc/sidestep/tls/{{ $names.certificate }}}
    - {name: SIDESTEP_CONTROL_PLANE_TLS_KEY, value: /etc/sidestep/tls/{{ $names.key }}}
    {{- end }}
    {{- if $sidecar.trustedKeysConfigMap }}
    - {name: SIDESTEP_TRUSTED_KEYS, value: /etc/sidestep/keys/keys.pem}
    {{- end }}
    {{- with include "sidestep.otlpEndpoint" $root }}
    - {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
    {{- end }}
    - {name: OTEL_EXPORTER_OTLP_PROTOCOL, value: {{ $values.telemetry.protocol | quote }}}
    {{- if $values.telemetry.insecure }}
    - {name: OTEL_EXPORTER_OTLP_INSECURE, value: "true"}
    {{- end }}
    {{- if $values.telemetry.resourceAttributes }}
    {{- $pairs := list }}
    {{- range $name, $value := $values.telemetry.resourceAttributes }}
    {{- $pairs = append $pairs (printf "%s=%s" $name $value) }}
    {{- end }}
    - {name: OTEL_RESOURCE_ATTRIBUTES, value: {{ join "," $pairs | quote }}}
    {{- end }}
    {{- range $name, $value := $sidecar.settings }}
    - {name: {{ $name }}, value: {{ $value | quote }}}
    {{- end }}
  # Started means answering, fail-safe answers included: a pod does not hang because the control plane is away.
  startupProbe:
    httpGet: {path: /startz, port: sidestep-http}
    periodSeconds: 1
    failureThreshold: 60
  readinessProbe:
    httpGet: {path: /readyz, port: sidestep-http}
    periodSeconds: 5
    timeoutSeconds: 2
  livenessProbe:
    httpGet: {path: /healthz, port: sidestep-http}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
  # No CPU limit: a throttled sidecar is a slow checkout, and its share under contention is what it requests.
  resources: {{- toYaml $sidecar.resources | nindent 4 }}
  securityContext:
    runAsUser: {{ $sidecar.runAsUser }}
    runAsGroup: {{ $sidecar.socketGroup }}
    {{- include "sidestep.containerSecurity" $root | nindent 4 }}
  volumeMounts:
    - {name: sidestep-data, mountPath: /var/lib/sidestep}
    - {name: sidestep-sockets, mountPath: /run/sidestep}
    {{- if ne $sidecar.tls.mode "none" }}
    - {name: sidestep-tls, mountPath: /etc/sidestep/tls, readOnly: true}
    {{- end }}
    {{- if $sidecar.callersSecret }}
    - {name: sidestep-callers, mountPath: /etc/sidestep/callers, readOnly: true}
    {{- end }}
    {{- if $sidecar.trustedKeysConfigMap }}
    - {name: sidestep-keys, mountPath: /etc/sidestep/keys, readOnly: true}
    {{- end }}
{{- end -}}

{{- define "sidestep.sidecar.volumes" -}}
{{- $sidecar := .values.sidecar -}}
# Two generations and a quarantined copy of the store, the journal's bound, and room for pages and pod-local state.
- name: sidestep-data
  emptyDir: {sizeLimit: {{ include "sidestep.sidecar.dataSize" $sidecar }}}
- name: sidestep-sockets
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- if eq $sidecar.tls.mode "spiffe" }}
- name: sidestep-tls
  csi:
    driver: {{ $sidecar.tls.csi.driver }}
    readOnly: true
    {{- with $sidecar.tls.csi.attributes }}
    volumeAttributes: {{- toYaml . | nindent 6 }}
    {{- end }}
{{- else if eq $sidecar.tls.mode "secret" }}
- {name: sidestep-tls, secret: {secretName: {{ $sidecar.tls.secretName }}, defaultMode: 0440}}
{{- end }}
{{- with $sidecar.callersSecret }}
- {name: sidestep-callers, secret: {secretName: {{ . }}, defaultMode: 0440}}
{{- end }}
{{- with $sidecar.trustedKeysConfigMap }}
- {name: sidestep-keys, configMap: {name: {{ . }}}}
{{- end }}
{{- end -}}

{{- define "sidestep.sidecar.appEnv" -}}
- {name: SIDESTEP_ADDRESS, value: "unix:///run/sidestep/pod/sidecar.sock"}
{{- end -}}

{{- define "sidestep.sidecar.appMounts" -}}
- {name: sidestep-sockets, mountPath: /run/sidestep}
{{- end -}}

{{/* Mebibytes in a size as Sidestep writes it (256MiB, 4GiB). */}}
{{- define "sidestep.mebibytes" -}}
{{- if hasSuffix "GiB" . -}}{{ mul (trimSuffix "GiB" . | int) 1024 }}{{- else -}}{{ trimSuffix "MiB" . | int }}{{- end -}}
{{- end -}}

{{- define "sidestep.sidecar.dataSize" -}}
{{ add (mul 3 (include "sidestep.mebibytes" .storeMax | int)) (include "sidestep.mebibytes" .journalMax | int) 128 }}Mi
{{- end -}}

{{- define "sidestep.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "sidestep.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "sidestep.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sidestep.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sidestep.controlplane" -}}{{ include "sidestep.fullname" . }}-controlplane{{- end -}}
{{- define "sidestep.injector" -}}{{ include "sidestep.fullname" . }}-injector{{- end -}}
{{- define "sidestep.collector" -}}{{ include "sidestep.fullname" . }}-collector{{- end -}}

{{/* Labels of everything. Call with (list $ "component"). */}}
{{- define "sidestep.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: sidestep
{{ include "sidestep.selector" . }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sidestep.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "sidestep.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* An image with its digest, or its tag. Call with (list $ .Values.images.sidecar). */}}
{{- define "sidestep.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- define "sidestep.serviceAccount" -}}
{{- $account := .Values.controlplane.serviceAccount -}}
{{- if $account.create -}}{{ default (include "sidestep.controlplane" .) $account.name }}{{- else -}}{{ default "default" $account.name }}{{- end -}}
{{- end -}}

{{- define "sidestep.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What every pod and container of ours demands of the kernel: nothing. */}}
{{- define "sidestep.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "sidestep.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* A volume with certificates, by mode. Call with (dict "tls" ... "secret" name). */}}
{{- define "sidestep.tlsVolume" -}}
{{- if eq .tls.mode "spiffe" -}}
- name: tls
  csi:
    driver: {{ .tls.csi.driver }}
    readOnly: true
    {{- with .tls.csi.attributes }}
    volumeAttributes: {{- toYaml . | nindent 6 }}
    {{- end }}
{{- else -}}
- name: tls
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
{{- end -}}
{{- end -}}

{{- define "sidestep.tlsSecret" -}}
{{- default (printf "%s-tls" (include "sidestep.controlplane" .)) .Values.controlplane.tls.secretName -}}
{{- end -}}

{{- define "sidestep.controlPlaneAddress" -}}
{{- if .Values.sidecar.controlPlane -}}
{{ .Values.sidecar.controlPlane }}
{{- else -}}
{{ include "sidestep.controlplane" . }}.{{ .Release.Namespace }}.svc:{{ .Values.controlplane.service.port }}
{{- end -}}
{{- end -}}

{{/* Where decisions go: the collector of this chart, or the one that is named. */}}
{{- define "sidestep.otlpEndpoint" -}}
{{- if .Values.telemetry.endpoint -}}
{{ .Values.telemetry.endpoint }}
{{- else if .Values.collector.enabled -}}
http://{{ include "sidestep.collector" . }}.{{ .Release.Namespace }}.svc:{{ eq .Values.telemetry.protocol "grpc" | ternary 4317 4318 }}
{{- end -}}
{{- end -}}

{{/* Combinations that no schema can see. */}}
{{- define "sidestep.check" -}}
{{- with .Values.controlplane -}}
{{- $many := or (gt (int .replicas) 1) .autoscaling.enabled -}}
{{- if and .enabled (eq .database.kind "sqlite") $many -}}
{{- fail "controlplane.replicas: SQLite serves one replica; several need controlplane.database.kind=postgresql" -}}
{{- end -}}
{{- if and .enabled (eq .database.kind "postgresql") (not .database.postgresql.secretName) -}}
{{- fail "controlplane.database.postgresql.secretName: needed with kind=postgresql (a Secret whose key holds the URL)" -}}
{{- end -}}
{{- if and .enabled (eq .tls.mode "secret") (not .tls.secretName) -}}
{{- fail "controlplane.tls.secretName: needed with mode=secret" -}}
{{- end -}}
{{- if and .enabled (eq .tls.mode "certManager") (not .tls.issuer.name) -}}
{{- fail "controlplane.tls.issuer.name: needed with mode=certManager" -}}
{{- end -}}
{{- if and .enabled (not .insecure) -}}
{{- if eq .tls.mode "none" -}}
{{- fail "controlplane.tls.mode: none leaves tokens and data readable on the network; choose secret, certManager or spiffe, or accept it with controlplane.insecure=true" -}}
{{- end -}}
{{- if not .sidecars -}}
{{- fail "controlplane.sidecars: says which certificates may follow which tenants; name them, or accept any sidecar with controlplane.insecure=true" -}}
{{- end -}}
{{- if not .operators.secretName -}}
{{- fail "controlplane.operators.secretName: says who may administer; name them, or let anybody with controlplane.insecure=true" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.injector -}}
{{- if and .enabled (eq .certificate.mode "certManager") (not .certificate.issuer.name) -}}
{{- fail "injector.certificate.issuer.name: needed with mode=certManager" -}}
{{- end -}}
{{- if and .enabled (eq .certificate.mode "secret") (not .certificate.secretName) -}}
{{- fail "injector.certificate.secretName: needed with mode=secret" -}}
{{- end -}}
{{- if and .enabled (not $.Values.sidecar.tenant) -}}
{{- fail "sidecar.tenant: needed by the injector: the tenant of pods that name none" -}}
{{- end -}}
{{- if and .enabled (ne $.Values.sidecar.tls.mode "spiffe") (eq $.Values.sidecar.tls.mode "none") (not $.Values.sidecar.tls.insecure) -}}
{{- fail "sidecar.tls.mode: none lets anybody between sidecar and control plane read along; choose secret or spiffe, or accept it with sidecar.tls.insecure=true" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.collector.enabled (not .Values.collector.exporters.otlphttp.endpoint) -}}
{{- fail "collector.exporters.otlphttp.endpoint: where the collector of this chart sends what it receives" -}}
{{- end -}}
{{- end -}}

{{- define "sidestep.injectorSecret" -}}
{{- default (printf "%s-tls" (include "sidestep.injector" .)) .Values.injector.certificate.secretName -}}
{{- end -}}

{{/* Environment shared by the control plane's Deployment and its migration Job. */}}
{{- define "sidestep.controlplane.env" -}}
{{- $cp := .Values.controlplane -}}
- name: SIDESTEP_CP_DATABASE_URL
  {{- if eq $cp.database.kind "postgresql" }}
  valueFrom:
    secretKeyRef: {name: {{ $cp.database.postgresql.secretName }}, key: {{ $cp.database.postgresql.secretKey }}}
  {{- else }}
  value: sqlite+aiosqlite:////var/lib/sidestep/sidestep.db
  {{- end }}
- name: SIDESTEP_CP_SNAPSHOT_DIR
  value: /var/lib/sidestep/snapshots
{{- end -}}

{{- define "sidestep.controlplane.dataVolume" -}}
{{- $cp := .Values.controlplane -}}
- name: data
  {{- if eq $cp.database.kind "sqlite" }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-data" (include "sidestep.controlplane" .)) $cp.database.sqlite.existingClaim }}
  {{- else }}
  emptyDir: {sizeLimit: {{ $cp.snapshots.size }}}
  {{- end }}
{{- end -}}

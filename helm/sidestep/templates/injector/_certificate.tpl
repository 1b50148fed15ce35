{{/* Pod that makes the webhook's certificate, or replaces it when it is due. Call with (list $ accountName). */}}
{{- define "sidestep.injector.certificatePod" -}}
{{- $root := index . 0 -}}
metadata:
  labels:
    {{- include "sidestep.labels" (list $root "certificate") | nindent 4 }}
    sidestep.dev/inject: "false"
spec:
  {{- include "sidestep.pullSecrets" $root | nindent 2 }}
  restartPolicy: Never
  serviceAccountName: {{ index . 1 }}
  enableServiceLinks: false
  securityContext: {{- include "sidestep.podSecurity" $root | nindent 4 }}
  containers:
    - name: certificate
      image: {{ include "sidestep.image" (list $root $root.Values.images.controlplane) }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      command: [sidestep-webhook-certificate]
      args:
        - --namespace={{ $root.Release.Namespace }}
        - --secret={{ include "sidestep.injectorSecret" $root }}
        - --webhook={{ include "sidestep.injector" $root }}-{{ $root.Release.Namespace }}
        - --name={{ include "sidestep.injector" $root }}.{{ $root.Release.Namespace }}.svc
        - --validity={{ $root.Values.injector.certificate.validity }}
      securityContext: {{- include "sidestep.containerSecurity" $root | nindent 8 }}
      resources:
        requests: {cpu: 10m, memory: 64Mi}
        limits: {memory: 128Mi}
{{- end -}}

{{/*
The template of a pod. Takes a `$d` with `role`: `server`, which answers requests, or `worker`, which computes for the
server of its group and answers none.
*/}}
{{- define "leoserve.pod" -}}
{{- $v := .v -}}
metadata:
  labels:
    {{- include "leoserve.podLabels" . | nindent 4 }}
  annotations:
    {{- /* Other options, other pods. */}}
    {{- merge (dict "checksum/options" (include "leoserve.options" . | sha256sum)) $v.podAnnotations | toYaml | nindent 4 }}
spec:
  serviceAccountName: {{ include "leoserve.serviceAccount" .root | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false  # a Service called leoserve would set LEOSERVE_PORT
  {{- /* How long the longest answer may take once everybody knows that the pod is ending, and then the server its leave. */}}
  terminationGracePeriodSeconds: {{ add $v.preStopSeconds (ceil $v.options.request_timeout) 15 }}
  {{- include "leoserve.identity" . | nindent 2 }}
  {{- include "leoserve.placement" . | nindent 2 }}
  {{- if eq $v.model.source "hub" }}
  initContainers:
    - name: download
      {{- include "leoserve.container" . | nindent 6 }}
      args: [download]
      env:
        {{- include "leoserve.env" . | nindent 8 }}
        {{- if $v.model.hub.tokenSecret }}
        - name: HF_TOKEN_PATH
          value: /etc/leoserve/hub/token
        {{- end }}
        {{- with $v.model.hub.endpoint }}
        - name: HF_ENDPOINT
          value: {{ . | quote }}
        {{- end }}
      resources:
        {{- include "leoserve.resources" . | nindent 8 }}
      volumeMounts:
        {{- include "leoserve.mounts" . | nindent 8 }}
        {{- if $v.model.hub.tokenSecret }}
        - name: hub-token
          mountPath: /etc/leoserve/hub
          readOnly: true
        {{- end }}
  {{- end }}
  containers:
    - name: leoserve
      {{- include "leoserve.container" . | nindent 6 }}
      args: [serve]
      env:
        {{- include "leoserve.env" . | nindent 8 }}
        - name: HF_HUB_OFFLINE  # what is served is what was downloaded
          value: "1"
        {{- if $v.apiKeys.enabled }}
        - name: LEOSERVE_API_KEY_FILE
          value: /etc/leoserve/keys/keys
        {{- end }}
      {{- if eq .role "server" }}
      ports:
        - name: http
          containerPort: 8000
          protocol: TCP
      {{- include "leoserve.probes" . | nindent 6 }}
      {{- end }}
      resources:
        {{- include "leoserve.resources" (merge (dict "gpus" true) .) | nindent 8 }}
      volumeMounts:
        {{- include "leoserve.mounts" . | nindent 8 }}
        - name: shm
          mountPath: /dev/shm
        {{- if has $v.model.source (list "pvc" "hostPath" "image") }}
        - name: model
          mountPath: {{ ternary (include "leoserve.model" .) "/models" (eq $v.model.source "hostPath") | quote }}
          readOnly: true
        {{- end }}
        {{- if $v.apiKeys.enabled }}
        - name: keys
          mountPath: /etc/leoserve/keys
          readOnly: true
        {{- end }}
        {{- with $v.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "leoserve.volumes" . | nindent 4 }}
{{- end }}

{{/* What every container of the image begins with. */}}
{{- define "leoserve.container" -}}
image: {{ include "leoserve.image" . | quote }}
imagePullPolicy: {{ .v.image.pullPolicy }}
securityContext:
  {{- toYaml .v.securityContext | nindent 2 }}
{{- end }}

{{/* Variables of the server and of the download. */}}
{{- define "leoserve.env" -}}
- name: LEOSERVE_CONFIG
  value: /etc/leoserve/options/options.yaml
- name: LEOSERVE_HOST
  value: {{ .v.host | quote }}
{{- with .v.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Requests and limits; with `gpus` those of the server, which has the GPUs and answers for the cache's disk. */}}
{{- define "leoserve.resources" -}}
{{- $resources := deepCopy .v.resources }}
{{- if .gpus }}
{{- if gt (int .v.gpu.count) 0 }}
{{- $_ := set $resources.limits .v.gpu.resource (int .v.gpu.count) }}
{{- $_ := set $resources.requests .v.gpu.resource (int .v.gpu.count) }}
{{- end }}
{{- if and (not (include "leoserve.cacheClaim" .)) (not (hasKey $resources.requests "ephemeral-storage")) }}
{{- $_ := set $resources.requests "ephemeral-storage" .v.cache.size }}
{{- end }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/*
When the pod gets requests and when it is started again. A start may take its time: until /ready has answered once,
/health is not asked. A server that hangs has no answers to finish, so it is not waited for.
*/}}
{{- define "leoserve.probes" -}}
startupProbe:
  httpGet: {path: /ready, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ ceil (divf .v.probes.startupSeconds 5) }}
  terminationGracePeriodSeconds: 30
readinessProbe:
  httpGet: {path: /ready, port: http}
  periodSeconds: {{ int .v.probes.readinessSeconds }}
  timeoutSeconds: 5
  failureThreshold: 2
livenessProbe:
  httpGet: {path: /health, port: http}
  periodSeconds: {{ int .v.probes.livenessSeconds }}
  timeoutSeconds: 5
  failureThreshold: {{ int .v.probes.livenessFailures }}
  terminationGracePeriodSeconds: 30
{{- if gt (int .v.preStopSeconds) 0 }}
lifecycle:
  preStop:
    {{- if semverCompare ">=1.30.0-0" .root.Capabilities.KubeVersion.Version }}
    sleep: {seconds: {{ int .v.preStopSeconds }}}
    {{- else }}
    exec: {command: [sleep, {{ int .v.preStopSeconds | quote }}]}
    {{- end }}
{{- end }}
{{- end }}

{{/* As whom a pod runs and pulls its image. Takes a `$d`. */}}
{{- define "leoserve.identity" -}}
{{- $v := .v -}}
securityContext:
  {{- toYaml $v.podSecurityContext | nindent 2 }}
{{- with $v.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Where a pod runs that computes or answers. Takes a `$d` with `role`. */}}
{{- define "leoserve.placement" -}}
{{- $v := .v -}}
{{- with $v.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and $v.topologySpread (eq .role "server") }}
topologySpreadConstraints:
  {{- range $v.topologySpread }}
  - {{ toYaml . | nindent 4 | trim }}
    labelSelector:
      matchLabels:
        {{- include "leoserve.selector" $ | nindent 8 }}
    {{- if eq (int $v.nodes) 1 }}
    matchLabelKeys: [pod-template-hash]  # a rollout's old pods do not count
    {{- end }}
  {{- end }}
{{- end }}
{{- with $v.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $v.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- end }}

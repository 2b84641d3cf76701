{{/* Labels of everything that the release has once. Takes the root. */}}
{{- define "leoserve.releaseLabels" -}}
{{- include "leoserve.labelsAnd" (list . dict) }}
{{- end }}

{{/* The same and more labels. Takes the root and a map. */}}
{{- define "leoserve.labelsAnd" -}}
{{- $root := index . 0 }}
{{- $own := dict
    "app.kubernetes.io/name" "leoserve"
    "app.kubernetes.io/part-of" (include "leoserve.base" $root)
    "app.kubernetes.io/version" $root.Chart.AppVersion
    "app.kubernetes.io/managed-by" $root.Release.Service
    "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") }}
{{- merge $own (index . 1) $root.Values.commonLabels | toYaml }}
{{- end }}

{{/* Labels of everything that belongs to one deployment. */}}
{{- define "leoserve.labels" -}}
{{- include "leoserve.labelsAnd" (list .root (dict "app.kubernetes.io/instance" .name)) }}
{{- end }}

{{/* Labels of a pod. Takes a `$d` with `role`. No version is among them: another chart alone is no reason for other pods. */}}
{{- define "leoserve.podLabels" -}}
{{- $own := dict
    "app.kubernetes.io/name" "leoserve"
    "app.kubernetes.io/instance" .name
    "app.kubernetes.io/component" .role
    "app.kubernetes.io/part-of" (include "leoserve.base" .root) }}
{{- if ne .role "test" }}
{{- $_ := set $own "llm-d.ai/engine-type" "vllm" }}{{/* whose names the metrics for endpoint pickers have */}}
{{- $own = merge $own .v.podLabels }}
{{- end }}
{{- merge $own .root.Values.commonLabels | toYaml }}
{{- end }}

{{/* What tells the pods that answer requests from all others. Never changes over a deployment's life. */}}
{{- define "leoserve.selector" -}}
app.kubernetes.io/name: leoserve
app.kubernetes.io/instance: {{ .name | quote }}
app.kubernetes.io/component: server
{{- end }}

{{/* What tells all pods that serve, workers of a group as well. */}}
{{- define "leoserve.podSelector" -}}
matchLabels:
  app.kubernetes.io/name: leoserve
  app.kubernetes.io/instance: {{ .name | quote }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: [server, worker]
{{- end }}

{{/* What tells the servers of all the release's deployments. Takes the root. */}}
{{- define "leoserve.releaseSelector" -}}
app.kubernetes.io/name: leoserve
app.kubernetes.io/part-of: {{ include "leoserve.base" . | quote }}
app.kubernetes.io/component: server
{{- end }}

{{/*
How fast replicas come and go. One goes at a time: its answers finish within the grace period, and only then can the
next one's share of requests be known.
*/}}
{{- define "leoserve.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: {{ int .v.autoscaling.scaleUpSeconds }}
scaleDown:
  stabilizationWindowSeconds: {{ int .v.autoscaling.scaleDownSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: {{ min 1800 (max 60 (int .v.autoscaling.scaleDownSeconds)) }}}
{{- end }}

{{/* The series of one deployment's pods, whose names end in two parts without a dash. */}}
{{- define "leoserve.series" -}}
{namespace="{{ .root.Release.Namespace }}",pod=~"{{ .name }}-[a-z0-9]+-[a-z0-9]+"}
{{- end }}

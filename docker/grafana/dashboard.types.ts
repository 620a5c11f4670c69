// What a dashboard of ours must be, in Grafana's own types; tests/monitoring/test_dashboards.py appends the dashboard
// itself as a literal of type `OurDashboard` and lets the TypeScript compiler judge: a misspelt key, a wrong value of
// an option or a missing one is an error.
import type { AnnotationQuery, Dashboard, FieldConfig, Panel, RowPanel } from "@grafana/schema";
import type {
  FieldConfig as HeatmapFields,
  Options as HeatmapOptions,
} from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type { Options as StatOptions } from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type { Options as TextOptions } from "@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen";
import type { Options as TableOptions } from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type {
  FieldConfig as TimeSeriesFields,
  Options as TimeSeriesOptions,
} from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// JSON has strings where the types have enumerations, so each enumeration is replaced by its values.
type Written<T> = unknown extends T
  ? T
  : T extends string
    ? `${T}`
    : T extends number | boolean | null | undefined
      ? T
      : T extends (infer Item)[]
        ? Written<Item>[]
        : { [Key in keyof T]: Written<T[Key]> };

interface PrometheusQuery {
  refId: string;
  datasource: { type: "prometheus"; uid: string };
  expr: string;
  legendFormat: string;
  instant: boolean;
  range: boolean;
  format: "time_series" | "table" | "heatmap";
  exemplar: boolean;
}

// What an option does not say has a default. Grafana's own `Panel` takes any option of any name; here each kind of
// panel has its own options, and nothing else.
type Some<T> = { [Key in keyof T]?: T[Key] extends object ? Some<T[Key]> : T[Key] };
type Defaults = Omit<Written<FieldConfig<never>>, "custom">;

type OurPanel<Kind extends string, Options, Custom = never> = Omit<
  Written<Panel>,
  "type" | "targets" | "options" | "fieldConfig"
> & {
  type: Kind;
  title: string;
  description: string;
  targets: PrometheusQuery[];
  options: Some<Written<Options>>;
  fieldConfig: {
    defaults: Defaults & { custom?: Some<Written<Custom>> };
    overrides: { matcher: { id: "byName"; options: string }; properties: { id: keyof Defaults; value: unknown }[] }[];
  };
};

// The fields of an annotation that Grafana's Prometheus data source reads, besides those of the schema.
type OurAnnotation = Written<AnnotationQuery> & { expr: string; titleFormat: string };

export type OurDashboard = Omit<Written<Dashboard>, "panels" | "annotations"> & {
  annotations: { list: OurAnnotation[] };
  panels: (
    | Written<RowPanel>
    | OurPanel<"heatmap", HeatmapOptions, HeatmapFields>
    | OurPanel<"stat", StatOptions>
    | OurPanel<"text", TextOptions>
    | OurPanel<"table", TableOptions>
    | OurPanel<"timeseries", TimeSeriesOptions, TimeSeriesFields>
  )[];
};

//! The plot: latency over throughput, as SVG.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use super::report::{StandardReport, Step};

const SIZE: (u32, u32) = (900, 560);
const FONT: &str = "sans-serif";

/// One line of the plot.
struct Series {
    name: &'static str,
    colour: RGBColor,
    value: fn(&Step) -> f64,
}

const SERIES: [Series; 4] = [
    Series {
        name: "send→ack p50",
        colour: RGBColor(120, 170, 220),
        value: |step| step.ack.p50_ms,
    },
    Series {
        name: "send→ack p99",
        colour: RGBColor(20, 80, 160),
        value: |step| step.ack.p99_ms,
    },
    Series {
        name: "send→received p50",
        colour: RGBColor(240, 170, 110),
        value: |step| step.delivery.p50_ms,
    },
    Series {
        name: "send→received p99",
        colour: RGBColor(190, 80, 20),
        value: |step| step.delivery.p99_ms,
    },
];

/// Draws the report's steps into a file; with fewer than two there is nothing to draw.
pub fn draw(report: &StandardReport, path: &Path) -> anyhow::Result<()> {
    if report.steps.len() < 2 {
        return Ok(());
    }
    render(report, path).map_err(|error| anyhow!("could not draw {}: {error}", path.display()))
}

fn render(report: &StandardReport, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let steps = &report.steps;
    let values = || {
        let all = steps
            .iter()
            .flat_map(|step| SERIES.map(|s| (s.value)(step)));
        all.filter(|ms| *ms > 0.0)
    };
    let lowest = values().fold(1.0, f64::min);
    let highest = values().fold(10.0, f64::max);
    let rate_max = steps.iter().map(|s| s.acked_per_s).fold(1.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("latency over throughput", (FONT, 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(
            0.0..rate_max * 1.05,
            (lowest * 0.8..highest * 1.3).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("acknowledged sends a second")
        .y_desc("latency, ms (logarithmic)")
        .x_label_formatter(&|rate| format!("{rate:.0}"))
        .y_label_formatter(&|ms| format!("{ms}"))
        .label_style((FONT, 14))
        .draw()?;
    for series in SERIES {
        let points: Vec<(f64, f64)> = steps
            .iter()
            .map(|step| (step.acked_per_s, (series.value)(step)))
            .filter(|(_, ms)| *ms > 0.0)
            .collect();
        let style = series.colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.clone(), style))?
            .label(series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        let marks = points
            .into_iter()
            .map(|point| Circle::new(point, 3, series.colour.filled()));
        chart.draw_series(marks)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 14))
        .draw()?;
    root.present()?;
    Ok(())
}

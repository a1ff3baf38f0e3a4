//! The report as a page of its own: one file with its style and charts inside, no script, and no link to anything outside.
//! Whatever came with a set is text to it: maud escapes all that is not written here.

mod chart;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use facewise_core::task::{AgeGroup, Task};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use self::chart::{count, percent};
use crate::comparison::{Difference, compare};
use crate::groups::GroupedMetrics;
use crate::metrics::{AgeMetrics, Figure, Interval, LabelMetrics, TaskMetrics};
use crate::report::{Geometry, Report};
use crate::worst::Miss;

const STYLE: &str = include_str!("style.css");

/// Small pictures of rows as JPEG, by their line in the manifest.
pub type Thumbnails = BTreeMap<u64, Vec<u8>>;

/// What the page needs of a browser: its own style, by its hash, and pictures that are inside it.
pub fn content_security_policy() -> String {
    let hash = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    format!("default-src 'none'; style-src 'sha256-{hash}'; img-src data:; base-uri 'none'; form-action 'none'")
}

/// The page, beside another report where there is one to compare with.
pub fn render(report: &Report, thumbnails: &Thumbnails, other: Option<&Report>) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(content_security_policy());
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                title { (report.dataset.name) " · " (report.model.name) " " (report.model.version) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (header(report))
                    (summary(&report.tasks))
                    @if let Some(age) = &report.tasks.age { (age_section(age, &figures_of(Task::Age, &report.tasks), &report.worst.age, thumbnails)) }
                    @for task in Task::ALL {
                        @if let Some(metrics) = report.tasks.labelled(task) {
                            (label_section(task, metrics, &figures_of(task, &report.tasks), report.worst.of(task), thumbnails))
                        }
                    }
                    @for (column, groups) in &report.groups { (groups_section(column, groups)) }
                    @if let Some(other) = other { (comparison_section(report, other)) }
                    (footer(report))
                }
            }
        }
    };
    page.into_string()
}

fn header(Report { dataset, model, detect, created, throughput, .. }: &Report) -> Markup {
    let faces = match detect {
        Geometry::Manifest => "by the set's keypoints, else by the detector",
        Geometry::Crop => "by the detector",
        Geometry::Square => "centred squares",
    };
    html! {
        header {
            div class="eyebrow" { "facewise evaluation" }
            h1 { (dataset.name) }
            dl class="facts" {
                div { dt { "Rows" } dd {
                    (count(dataset.rows))
                    @if let Some(filter) = &dataset.filter { " where " (filter) }
                    @if let Some(limit) = dataset.limit { ", the first " (count(limit as u64)) " at most" }
                } }
                div { dt { "Model" } dd { (model.name) " " (model.version) " " span class="soft" { (model.sha256.chars().take(12).collect::<String>()) } } }
                div { dt { "Faces" } dd { (faces) } }
                div { dt { "Speed" } dd { (format!("{:.0}", throughput.images_per_second)) " pictures/s" } }
                div { dt { "Made" } dd { (created) } }
                @if !dataset.skipped.is_empty() { div { dt { "Skipped" } dd { (count(dataset.skipped.len() as u64)) } } }
            }
        }
    }
}

/// The figure that a task is told by in one word.
fn summary(tasks: &TaskMetrics) -> Markup {
    let tile = |name: &str, value: &str, unit: &str, note: String| {
        html! { div class="tile" { span class="soft" { (name) } b { (value) @if !unit.is_empty() { small { (unit) } } } span class="note" { (note) } } }
    };
    html! {
        div class="tiles" {
            @if let Some(age) = &tasks.age {
                (tile("Age, mean absolute error", &format!("{:.2}", age.mae), "years", note(age.intervals.get("mae"), age.n, |value| format!("{value:.2}"))))
            }
            @for task in Task::ALL {
                @if let Some(metrics) = tasks.labelled(task) {
                    @let name = format!("{}, accuracy", title(task));
                    (tile(&name, &format!("{:.1}", metrics.accuracy * 100.0), "%", note(metrics.intervals.get("accuracy"), metrics.n, percent)))
                }
            }
        }
    }
}

fn note(interval: Option<&Interval>, n: u64, word: impl Fn(f64) -> String) -> String {
    let range = interval.map(|[low, high]| format!("{} to {} with 95 % · ", word(*low), word(*high)));
    format!("{}{} rows", range.unwrap_or_default(), count(n))
}

const fn title(task: Task) -> &'static str {
    match task {
        Task::Age => "Age",
        Task::Gender => "Gender",
        Task::Smile => "Smile",
        Task::Emotion => "Emotion",
    }
}

/// What a figure is called and what it means, and whether more of it is better.
struct Meaning {
    name: &'static str,
    title: &'static str,
    says: &'static str,
    unit: Unit,
    more_is_better: bool,
}

#[derive(Clone, Copy)]
enum Unit {
    Years,
    Share,
    Plain,
}

impl Unit {
    fn word(self, value: f64) -> String {
        match self {
            Self::Years => format!("{value:.2}"),
            Self::Share => percent(value),
            Self::Plain => format!("{value:.3}"),
        }
    }

    fn difference(self, value: f64) -> String {
        match self {
            Self::Years => format!("{value:+.2}"),
            Self::Share => format!("{:+.1} points", value * 100.0),
            Self::Plain => format!("{value:+.3}"),
        }
    }
}

const fn meaning(
    name: &'static str,
    title: &'static str,
    unit: Unit,
    more_is_better: bool,
    says: &'static str,
) -> Meaning {
    Meaning { name, title, says, unit, more_is_better }
}

const MEANINGS: [Meaning; 11] = [
    meaning("mae", "Mean absolute error", Unit::Years, false, "years that an answer is off"),
    meaning("mean_error", "Mean error", Unit::Years, false, "above 0 where faces are taken for older than they are"),
    meaning("cs5", "Within 5 years", Unit::Share, true, "cumulative score CS(5), Geng et al. 2007"),
    meaning("accuracy_8", "Right age group", Unit::Share, true, "of the eight of Adience, Eidinger et al. 2014"),
    meaning("accuracy_8_one_off", "Right group or its neighbour", Unit::Share, true, "one off, Eidinger et al. 2014"),
    meaning(
        "interval_coverage",
        "Within the interval",
        Unit::Share,
        true,
        "of 68 %; calibrated ones hold a little more, as their ends are whole years",
    ),
    meaning("accuracy", "Accuracy", Unit::Share, true, "share of rows with the right label"),
    meaning(
        "balanced_accuracy",
        "Balanced accuracy",
        Unit::Share,
        true,
        "mean of the labels' recalls, Brodersen et al. 2010",
    ),
    meaning("macro_f1", "Macro F1", Unit::Plain, true, "mean of the labels' F1"),
    meaning("log_loss", "Log loss", Unit::Plain, false, "mean of −ln p of the true label"),
    meaning(
        "ece",
        "Calibration error",
        Unit::Plain,
        false,
        "expected gap between confidence and accuracy, 15 bins, Guo et al. 2017",
    ),
];

fn meaning_of(name: &str) -> Option<&'static Meaning> {
    MEANINGS.iter().find(|meaning| meaning.name == name)
}

fn value_with_interval(unit: Unit, value: f64, interval: Option<Interval>) -> Markup {
    html! {
        (unit.word(value))
        @if let Some([low, high]) = interval { " " span class="between" { (unit.word(low)) " – " (unit.word(high)) } }
    }
}

fn figures_table(figures: &[Figure]) -> Markup {
    html! {
        div class="card scroll" {
            table {
                thead { tr { th { "Figure" } th { "Value, 95 % interval" } th class="words" { "Meaning" } } }
                tbody {
                    @for figure in figures {
                        @if let Some(meaning) = meaning_of(figure.name) {
                            tr {
                                th scope="row" { (meaning.title) }
                                td { (value_with_interval(meaning.unit, figure.value, figure.interval)) }
                                td class="words soft" { (meaning.says) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn figures_of(task: Task, metrics: &TaskMetrics) -> Vec<Figure> {
    metrics.figures().into_iter().filter(|figure| figure.task == task).collect()
}

fn card(heading: &str, chart: &Markup, caption: &str) -> Markup {
    html! { figure class="card" { h3 { (heading) } (chart) figcaption { (caption) } } }
}

fn age_section(age: &AgeMetrics, figures: &[Figure], misses: &[Miss], thumbnails: &Thumbnails) -> Markup {
    let decades: Vec<_> = age
        .mae_by_decade
        .iter()
        .map(|(decade, metrics)| (decade.first(), metrics.n, metrics.mae, metrics.mean_error))
        .collect();
    let scores: Vec<(u8, f64)> = age.cs.iter().map(|(years, share)| (*years, *share)).collect();
    html! {
        section {
            h2 { "Age" }
            (figures_table(figures))
            div class="cards" {
                (card("Error by age", &chart::errors_by_age(&decades), "Bars: mean absolute error in years. Dots: mean error, above 0 where faces are taken for older. Below: decade of the true age, by its first year, and its rows."))
                @if !scores.is_empty() {
                    (card("Cumulative score", &chart::cumulative_score(&scores), "Share of rows that are off by no more than so many years."))
                }
                @if !age.confusion_8.is_empty() {
                    (card("Age groups", &chart::confusion(&AgeGroup::NAMES, &age.confusion_8), "Rows: true group. Columns: answered group. The darker, the larger the share of its row."))
                }
            }
            (misses_list(misses, thumbnails, |miss| format!("{:.1} years off", miss.error)))
        }
    }
}

fn label_section(
    task: Task,
    metrics: &LabelMetrics,
    figures: &[Figure],
    misses: &[Miss],
    thumbnails: &Thumbnails,
) -> Markup {
    let labels: Vec<&str> = metrics.labels.iter().map(String::as_str).collect();
    html! {
        section {
            h2 { (title(task)) }
            (figures_table(figures))
            div class="cards" {
                (card("Confusion", &chart::confusion(&labels, &metrics.confusion), "Rows: true label. Columns: answered label. The darker, the larger the share of its row."))
                @if !metrics.reliability.is_empty() {
                    (card("Reliability", &chart::reliability(&metrics.reliability), "Below the dashed line the network is surer than it is right."))
                }
                div class="card scroll" {
                    h3 { "By label" }
                    (labels_table(metrics))
                }
            }
            (misses_list(misses, thumbnails, |miss| format!("true label given {}", percent(1.0 - miss.error))))
        }
    }
}

fn labels_table(LabelMetrics { labels, confusion, .. }: &LabelMetrics) -> Markup {
    let share = |part: u64, whole: u64| if whole > 0 { percent(part as f64 / whole as f64) } else { "–".to_owned() };
    html! {
        table {
            thead { tr { th { "Label" } th { "Rows" } th { "Recall" } th { "Precision" } } }
            tbody {
                @for (index, label) in labels.iter().enumerate() {
                    @let hits = confusion[index][index];
                    @let rows: u64 = confusion[index].iter().sum();
                    @let answers: u64 = confusion.iter().map(|row| row[index]).sum();
                    tr { th scope="row" { (label) } td { (count(rows)) } td { (share(hits, rows)) } td { (share(hits, answers)) } }
                }
            }
        }
    }
}

fn misses_list(misses: &[Miss], thumbnails: &Thumbnails, says: impl Fn(&Miss) -> String) -> Markup {
    html! {
        @if !misses.is_empty() {
            div class="card" {
                h3 { "Worst answers" }
                ol class="misses" {
                    @for miss in misses {
                        li {
                            @if let Some(picture) = thumbnails.get(&miss.line) {
                                img alt={"Picture of line " (miss.line)} src={"data:image/jpeg;base64," (STANDARD.encode(picture))};
                            }
                            b { (miss.truth) " → " (miss.predicted) }
                            div { (says(miss)) }
                            div class="soft" { "line " (miss.line) ", " (miss.path) }
                        }
                    }
                }
            }
        }
    }
}

/// The figures that groups are compared by, one of each task.
const OF_GROUPS: [(&str, &str); 6] = [
    ("age", "mae"),
    ("age", "mean_error"),
    ("gender", "accuracy"),
    ("smile", "accuracy"),
    ("emotion", "accuracy"),
    ("emotion", "macro_f1"),
];

fn groups_section(column: &str, groups: &GroupedMetrics) -> Markup {
    let figures: BTreeMap<&str, Vec<Figure>> =
        groups.values.iter().map(|(value, group)| (value.as_str(), group.tasks.figures())).collect();
    let of = |value: &str, (task, name): (&str, &str)| {
        let figures = figures.get(value)?;
        figures.iter().find(|figure| figure.task.name() == task && figure.name == name).cloned()
    };
    let known = |figure: &&(&str, &str)| figures.keys().any(|value| of(value, **figure).is_some());
    let shown: Vec<(&str, &str)> = OF_GROUPS.iter().filter(known).copied().collect();
    let gap = |(task, name): (&str, &str)| groups.largest_gap.get(&format!("{task}.{name}"));
    let heading = |(task, name): (&str, &str)| {
        let title = meaning_of(name).map_or(name, |meaning| meaning.title);
        format!("{task}: {}", title.to_lowercase())
    };
    let unit = |name: &str| meaning_of(name).map_or(Unit::Plain, |meaning| meaning.unit);
    html! {
        section {
            h2 { "By " (column) }
            div class="card scroll" {
                table {
                    thead { tr { th { (column) } th { "Rows" } @for figure in &shown { th { (heading(*figure)) } } } }
                    tbody {
                        @for (value, group) in &groups.values {
                            tr {
                                th scope="row" { @if value.is_empty() { "(empty)" } @else { (value) } }
                                td { (count(group.n)) }
                                @for figure in &shown {
                                    td { @if let Some(found) = of(value, *figure) { (unit(figure.1).word(found.value)) } @else { "–" } }
                                }
                            }
                        }
                        tr {
                            th scope="row" { "Largest gap" }
                            td {}
                            @for figure in &shown {
                                td { @if let Some(gap) = gap(*figure) { (unit(figure.1).word(*gap)) } @else { "–" } }
                            }
                        }
                    }
                }
            }
            div class="cards" {
                @for figure in shown.iter().filter(|(_, name)| matches!(*name, "mae" | "accuracy")) {
                    @let rows: Vec<_> = groups.values.keys().filter_map(|value| {
                        let found = of(value, *figure)?;
                        Some((value.clone(), found.value, found.interval))
                    }).collect();
                    (card(&heading(*figure), &chart::forest(&heading(*figure), &rows, |value| unit(figure.1).word(value)), "With 95 % intervals. Groups whose intervals lie apart differ by more than chance."))
                }
            }
        }
    }
}

fn comparison_section(report: &Report, other: &Report) -> Markup {
    let class = |difference: &Difference, meaning: &Meaning| {
        // Of the mean error, neither direction is better.
        if !difference.is_clear() || meaning.name == "mean_error" {
            ""
        } else if (difference.difference > 0.0) == meaning.more_is_better {
            "better"
        } else {
            "worse"
        }
    };
    html! {
        section {
            h2 { "Compared with " (other.model.name) " " (other.model.version) }
            p class="note" {
                "That report: " (other.dataset.name) ", " (count(other.dataset.rows)) " rows, made " (other.created) ". The interval of a difference takes the two for independent; on the same rows the true one is shorter. Coloured differences are clear of chance."
            }
            div class="card scroll" {
                table {
                    thead { tr { th { "Figure" } th { "This" } th { "Other" } th { "Difference" } } }
                    tbody {
                        @for difference in compare(report, other) {
                            @if let Some(meaning) = meaning_of(difference.this.name) {
                                tr {
                                    th scope="row" { (title(difference.this.task)) ": " (meaning.title.to_lowercase()) }
                                    td { (value_with_interval(meaning.unit, difference.this.value, difference.this.interval)) }
                                    td { (value_with_interval(meaning.unit, difference.other, difference.other_interval)) }
                                    td class=(class(&difference, meaning)) {
                                        (meaning.unit.difference(difference.difference))
                                        @if let Some([low, high]) = difference.interval {
                                            " " span class="between" { (meaning.unit.difference(low)) " – " (meaning.unit.difference(high)) }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Skipped rows that the page names; the CSV names all.
const SKIPPED_NAMED: usize = 200;

fn footer(Report { dataset, model, .. }: &Report) -> Markup {
    html! {
        @if !dataset.skipped.is_empty() {
            details {
                summary { (count(dataset.skipped.len() as u64)) " rows count nowhere, for their pictures are unreadable" }
                ul { @for skipped in dataset.skipped.iter().take(SKIPPED_NAMED) { li { (skipped.path) ": " (skipped.reason) } } }
                @if dataset.skipped.len() > SKIPPED_NAMED { p class="note" { "… and " (count((dataset.skipped.len() - SKIPPED_NAMED) as u64)) " more" } }
            }
        }
        footer class="note" {
            p { "Intervals hold the true value with 95 %: percentiles of the Poisson bootstrap, 1,000 replicates, 400 in groups (Chamandy et al. 2012)." }
            p { "Model file SHA-256 " (model.sha256) }
        }
    }
}

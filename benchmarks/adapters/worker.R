# Worker for R packages; speaks the protocol of benchmarks/worker.py. Arguments: package (lme4, lmerTest or glmmTMB),
# formula, family, "reml" or "ml", task, table folder.

say <- function(...) {
  parts <- list(...)
  one <- function(v) {
    if (is.null(v) || (length(v) == 1 && is.na(v))) "null"
    else if (is.character(v)) encodeString(v, quote = '"')
    else if (is.logical(v)) tolower(as.character(v))
    else paste0("[", paste(format(v, digits = 17, trim = TRUE), collapse = ","), "]")
  }
  scalar <- function(v) if (is.numeric(v) && length(v) == 1 && !is.na(v)) format(v, digits = 17) else one(v)
  values <- mapply(function(v, name) if (name == "seconds") one(v) else scalar(v), parts, names(parts))
  cat("{", paste0('"', names(parts), '":', values, collapse = ","), "}\n", sep = "")
  flush(stdout())
}

peak_mb <- function() {
  if (!file.exists("/proc/self/status")) return(NA)
  line <- grep("^VmHWM:", readLines("/proc/self/status"), value = TRUE)
  as.numeric(gsub("[^0-9]", "", line)) * 1024 / 1e6
}

read_table <- function(folder) {
  manifest <- read.delim(file.path(folder, "manifest.tsv"), header = FALSE, stringsAsFactors = FALSE)
  columns <- lapply(seq_len(nrow(manifest)), function(i) {
    kind <- manifest[i, 2]
    what <- if (kind == "double") "double" else "integer"
    path <- file.path(folder, paste0(manifest[i, 4], ".bin"))
    values <- readBin(path, what, manifest[i, 3], endian = "little")
    if (what == "double" || kind == "integer") return(values)
    structure(values + 1L, levels = readLines(file.path(folder, paste0(manifest[i, 4], ".levels"))),
              class = c(if (kind == "ordered") kind, "factor"))
  })
  names(columns) <- manifest[, 1]
  structure(columns, class = "data.frame", row.names = c(NA, -manifest[1, 3]))
}

DRAWS <- 40

arguments <- commandArgs(trailingOnly = TRUE)
package <- arguments[1]
if (!suppressWarnings(suppressMessages(require(package, quietly = TRUE, character.only = TRUE)))) {
  say(absent = paste("the R package", package, "is not installed"))
  quit(status = 0)
}
options(warn = -1)
formula <- as.formula(arguments[2])
family <- arguments[3]
linear <- family == "gaussian"
reml <- arguments[4] == "reml"
task <- arguments[5]
data <- read_table(arguments[6])
# the log-likelihoods of both packages have all constants
criterion <- function(m) if (linear && reml) REMLcrit(m) else if (linear) deviance(m) else -2 * as.numeric(logLik(m))
evaluations <- function(m) if (package == "glmmTMB") m$fit$evaluations[["function"]] else m@optinfo$feval
complaints <- function(m) {
  if (package != "glmmTMB") return(paste(unlist(m@optinfo$conv$lme4$messages), collapse = "; "))
  if (m$fit$convergence == 0) "" else m$fit$message
}

per <- 1
if (task == "satterthwaite") {
  # lmerTest's lmer() prepares the derivatives that summary() takes its degrees of freedom from
  run <- function() {
    m <- lmerTest::lmer(formula, data, REML = reml)
    coef(summary(m, ddf = "Satterthwaite"))
    m
  }
} else if (task == "fit" && package == "glmmTMB") {
  run <- function() glmmTMB(formula, data, family = family)
} else if (task == "fit") {
  run <- if (linear) function() lmer(formula, data, REML = reml) else function() glmer(formula, data, family = family)
} else {
  fitted <- lmer(formula, data, REML = reml)
  if (task == "refit") {
    y <- as.numeric(getME(fitted, "y"))
    new_y <- y + sd(y) / 5 * sin(seq_along(y))
    run <- function() refit(fitted, new_y)
    # REMLcrit() of a refitted model is not the REML criterion at its theta (lme4 1.1-31), so that is evaluated
    formula[[2]] <- as.name("new_y")
    objective <- lmer(formula, cbind(data, new_y = new_y), REML = reml, devFunOnly = TRUE)
    criterion <- function(m) objective(getME(m, "theta"))
  } else {
    per <- DRAWS
    run <- function() bootMer(fitted, function(m) c(fixef(m), getME(m, "theta"), sigma(m)), nsim = DRAWS, seed = 1)
  }
}

if (file.exists("/proc/self/clear_refs")) try(writeLines("5", "/proc/self/clear_refs"), silent = TRUE)
cat(sprintf('{"ready":true,"versions":{"%s":"%s","R":"%s","R BLAS":"%s"}}\n', package, packageVersion(package),
            paste(R.version$major, R.version$minor, sep = "."), basename(extSoftVersion()[["BLAS"]])))
flush(stdout())
input <- file("stdin", "r")
while (length(line <- readLines(input, n = 1)) == 1) {
  gc()  # once a turn, as in worker.py
  enough <- as.numeric(line)
  seconds <- c()
  failure <- tryCatch(suppressMessages({
    while (length(seconds) == 0 || sum(seconds) < enough) {
      result <- NULL
      start <- Sys.time()
      result <- run()
      seconds <- c(seconds, as.numeric(difftime(Sys.time(), start, units = "secs")))
    }
    NULL
  }), error = function(e) conditionMessage(e))
  if (!is.null(failure)) {
    say(failed = failure)
  } else if (per > 1) {
    say(seconds = seconds, peak_mb = peak_mb(), criterion = NA, evaluations = NA, per = per, note = "")
  } else {
    say(seconds = seconds, peak_mb = peak_mb(), criterion = criterion(result), evaluations = evaluations(result),
        per = per, note = complaints(result))
  }
}

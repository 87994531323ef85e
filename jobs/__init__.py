"""The commands of clipglot as functions: one a command, each with a settings dataclass in `jobs.settings`.

========================  ========================================================================
command                   function
========================  ========================================================================
`clipglot cache`          `jobs.cache.cache_images(CacheSettings)`
`clipglot captions`       `jobs.captions.add_captions(CaptionsSettings)`
`clipglot import`         `jobs.import_embeddings.import_embeddings(ImportSettings)`
`clipglot merge`          `jobs.merge.merge_caches(MergeSettings)`
`clipglot convert`        `jobs.convert.convert_cache(ConvertSettings)`
`clipglot inspect`        `jobs.inspect.inspect_cache(InspectSettings)`
`clipglot verify`         `jobs.verify.verify_cache(VerifySettings)`
`clipglot duplicates`     `jobs.duplicates.find_duplicates(DuplicatesSettings)`
`clipglot index`          `jobs.index.build_index(IndexSettings)`
`clipglot tokenizer`      `jobs.tokenizer.train_tokenizer`, `inspect_tokenizer(TokenizerSettings)`
`clipglot train`          `jobs.train.train(TrainSettings)`
`clipglot export`         `jobs.export.export_run(ExportSettings)`
`clipglot eval retrieval` `jobs.evaluate.evaluate_retrieval(RetrievalSettings)`
`clipglot eval zeroshot`  `jobs.evaluate.evaluate_zeroshot(ZeroShotSettings)`
`clipglot eval probe`     `jobs.evaluate.evaluate_probe(ProbeSettings)`
`clipglot eval speed`     `jobs.evaluate.evaluate_speed(SpeedSettings)`
`clipglot report`         `jobs.report.report(ReportSettings)`
`clipglot predict`        `jobs.predict.predict(PredictSettings)`
`clipglot serve`          `jobs.serve.serve(ServeSettings)`
`clipglot search`         `jobs.search.search_images(SearchSettings)`
`clipglot bench`          `jobs.bench.bench(BenchSettings)`
========================  ========================================================================

Each opens what its settings name, does the work and returns a dataclass; `cli/` parses options and renders the result.
`clipglot demo` is in `demo/`, because it calls several of these.
"""

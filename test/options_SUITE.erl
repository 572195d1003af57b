%%% What `start_link/1' takes: the options, and where certificates are found.
-module(options_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(POOL, macula_gateway_mesh).
-define(DEFAULT_FOLDER, "/var/lib/macula").
%% certificate_required (RFC 8446, section 6.2).
-define(CERTIFICATE_REQUIRED, 116).

suite() -> [{timetrap, {seconds, 90}}].

all() ->
    [
        % Options
        ignores_what_is_not_its_own_in_the_nodes_configuration,
        keeps_1000_connections_by_default,
        takes_every_option_at_its_bounds,
        refuses_every_option_beyond_its_bounds,
        refuses_an_option_that_is_no_integer,
        refuses_a_keep_alive_that_comes_after_the_idle_timeout,
        refuses_file_names_that_are_none,
        can_start_after_a_refused_start,
        % Certificates
        starts_without_a_certificate_when_the_files_do_not_exist,
        a_certificate_or_a_key_alone_is_not_shown,
        a_path_that_says_nothing_is_as_none_given,
        what_is_no_path_in_the_application_environment_is_warned_of,
        takes_a_file_whose_name_is_no_utf_8,
        encodes_file_names_as_the_vm_does,
        tells_what_is_wrong_with_a_certificate_file,
        tells_what_is_wrong_with_a_key_file,
        presents_the_certificate_of_its_options,
        takes_file_names_as_strings_and_as_binaries,
        options_go_before_the_environment,
        the_environment_goes_before_the_application_environment,
        the_application_environment_goes_before_the_default_place,
        presents_the_certificate_of_the_default_place,
        presents_none_when_there_is_none,
        a_peer_that_demands_a_certificate_ends_the_connection
    ].

init_per_testcase(_Case, Config) ->
    ok = mesh_ct:begin_test(),
    Config.

end_per_testcase(_Case, _Config) ->
    mesh_ct:end_test(),
    ok.

%%% Options

ignores_what_is_not_its_own_in_the_nodes_configuration(_Config) ->
    % The node's supervisor passes its whole configuration.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{
        port => 4433,
        realm => <<"org.example">>,
        node_id => <<7:256>>,
        url => <<"https://localhost:4433">>,
        certificate => not_ours,
        "a string" => [1, 2],
        {a, tuple} => #{},
        <<"max_mesh_connections">> => -1,
        1 => 2,
        max_mesh_connections => 7
    }),
    ?assertEqual(7, mesh_ct:stat(limit)),
    ?assert(is_reference(mesh_ct:connect(Pool, Peer))).

keeps_1000_connections_by_default(_Config) ->
    % Operators sized their machines for the default of the original.
    mesh_ct:start_pool(),
    ?assertEqual(1_000, mesh_ct:stat(limit)).

%% Name, least and greatest value: as in Config::OPTIONS of native/mesh/src/config.rs.
options() ->
    Mib = 1024 * 1024,
    Hour = 3_600_000,
    [
        {max_mesh_connections, 1, 1_000_000},
        {connect_timeout_ms, 1, Hour},
        {idle_timeout_ms, 100, Hour},
        {keep_alive_interval_ms, 0, Hour},
        {ack_timeout_ms, 0, Hour},
        {probe_after_ms, 0, Hour},
        {linger_ms, 0, 60_000},
        {queue_max_messages, 1, 16_777_216},
        {queue_max_bytes, 1_024, 4_096 * Mib},
        {pool_queue_max_messages, 1, 268_435_456},
        {pool_queue_max_bytes, 1_024, 65_536 * Mib},
        {send_watermark_bytes, 1, 4_096 * Mib},
        {pool_send_watermark_bytes, 1, 65_536 * Mib},
        {max_concurrent_dials, 1, 65_536},
        {max_pending_dials, 1, 1_048_576},
        {dial_backoff_min_ms, 0, Hour},
        {dial_backoff_max_ms, 1, Hour},
        {stream_credit_timeout_ms, 1, Hour},
        {udp_buffer_bytes, 65_536, 1_024 * Mib},
        {endpoints, 1, 256},
        {runtime_workers, 1, 256}
    ].

takes_every_option_at_its_bounds(_Config) ->
    % An operator who sets what the table of options allows gets a pool.
    [
        start_and_stop(Options)
     || {Key, Least, Greatest} <- options(),
        Value <- [Least, Greatest],
        Options <- [at_bound(Key, Value)]
    ].

%% A keep-alive has to come before the idle timeout, whatever the bounds of each.
at_bound(idle_timeout_ms = Key, Value) -> #{Key => Value, keep_alive_interval_ms => 0};
at_bound(keep_alive_interval_ms = Key, 0) -> #{Key => 0};
at_bound(keep_alive_interval_ms = Key, Value) -> #{Key => Value - 1, idle_timeout_ms => Value};
at_bound(Key, Value) -> #{Key => Value}.

start_and_stop(Options) ->
    {Options, {ok, Pool}} = {Options, ?POOL:start_link(Options)},
    ok = ?POOL:stop(Pool).

refuses_every_option_beyond_its_bounds(_Config) ->
    % A mistake in a unit shows at the start, and not as a stalled node at night.
    [
        ?assertEqual({error, {bad_option, Key, Value}}, ?POOL:start_link(#{Key => Value}))
     || {Key, Least, Greatest} <- options(),
        Value <- [Least - 1, Greatest + 1]
    ].

refuses_an_option_that_is_no_integer(_Config) ->
    % Configurations come from files and environments, where numbers easily become something else.
    Bad = [1.0, "1", <<"1">>, infinity, undefined, -(1 bsl 70), 1 bsl 70, [], {1}, #{}],
    [
        ?assertEqual({error, {bad_option, Key, Value}}, ?POOL:start_link(#{Key => Value}))
     || {Key, _, _} <- options(),
        Value <- Bad
    ].

refuses_a_keep_alive_that_comes_after_the_idle_timeout(_Config) ->
    % It would close healthy connections.
    Refused = fun(Value) -> {error, {bad_option, keep_alive_interval_ms, Value}} end,
    Start = fun(Idle, KeepAlive) ->
        ?POOL:start_link(#{idle_timeout_ms => Idle, keep_alive_interval_ms => KeepAlive})
    end,
    ?assertEqual(Refused(1_000), Start(1_000, 1_000)),
    ?assertEqual(Refused(1_001), Start(1_000, 1_001)),
    % That of the default gives way to a short idle timeout.
    start_and_stop(#{idle_timeout_ms => 20_000}),
    start_and_stop(#{idle_timeout_ms => 1_000, keep_alive_interval_ms => 999}).

refuses_file_names_that_are_none(_Config) ->
    % A wrong type in the configuration is told as every other one.
    Bad = [42, 1.5, {a, b}, #{}, [a | b], ["a", foo], self(), none],
    [
        ?assertEqual(
            {error, {bad_option, Key, Value}},
            ?POOL:start_link(#{cert_file => "/no/cert", key_file => "/no/key", Key => Value})
        )
     || Key <- [cert_file, key_file],
        Value <- Bad
    ].

can_start_after_a_refused_start(_Config) ->
    % Whoever mends the configuration needs no new node.
    ?assertMatch({error, {bad_option, linger_ms, -1}}, ?POOL:start_link(#{linger_ms => -1})),
    ?assertEqual(undefined, whereis(?POOL)),
    Peer = mesh_ct:start_peer(),
    ?assert(is_reference(mesh_ct:connect(mesh_ct:start_pool(), Peer))).

%%% Certificates

starts_without_a_certificate_when_the_files_do_not_exist(_Config) ->
    % A node whose certificates are not there yet must come up, and say so.
    mesh_ct:start_logging(),
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{cert_file => "/no/such/cert", key_file => <<"/no/such/key">>}),
    ?assertMatch(["/no/such/cert", <<"/no/such/key">>], [
        Path
     || {warning, #{path := Path}} <- mesh_ct:flush()
    ]),
    ?assertEqual(none, presented(Pool, Peer)).

a_certificate_or_a_key_alone_is_not_shown(Config) ->
    % It proves nothing, and whoever forgot the other file learns which one is there.
    {Cert, Key, _} = identity(Config, half),
    mesh_ct:start_logging(),
    [
        begin
            {ok, Pool} = ?POOL:start_link(#{Option => Path}),
            ?assertMatch(
                [#{msg := "a certificate or key file alone is of no use" ++ _, path := Path}],
                [Report || {warning, #{path := _} = Report} <- mesh_ct:flush()]
            ),
            ?assertEqual(none, presented(Pool, mesh_ct:start_peer())),
            ok = ?POOL:stop(Pool)
        end
     || {Option, Path} <- [{cert_file, Cert}, {key_file, Key}]
    ].

a_path_that_says_nothing_is_as_none_given(Config) ->
    % Of a variable that is not set, configurations make an empty string, and those of Elixir `nil'.
    {_, _, Der} = Identity = identity(Config, environment),
    set_environment(Identity),
    Peer = mesh_ct:start_peer(),
    [
        begin
            ok = application:set_env(macula, tls_certfile, None),
            {ok, Pool} = ?POOL:start_link(#{cert_file => None, key_file => None}),
            ?assertEqual({certificate, Der}, presented(Pool, Peer)),
            ok = ?POOL:stop(Pool)
        end
     || None <- [undefined, nil, "", <<>>]
    ].

what_is_no_path_in_the_application_environment_is_warned_of(Config) ->
    % A node whose configuration says it with an atom must come up, and say what is wrong.
    {Cert, Key, _} = identity(Config, application),
    mesh_ct:start_logging(),
    Peer = mesh_ct:start_peer(),
    [
        begin
            set_application_environment({NoPath, Key, none}),
            {ok, Pool} = ?POOL:start_link(#{}),
            ?assertEqual(
                [#{msg => "no name of a file, so no certificate is shown", path => NoPath}],
                [Report || {warning, #{path := _} = Report} <- mesh_ct:flush()]
            ),
            ?assertEqual(none, presented(Pool, Peer)),
            ok = ?POOL:stop(Pool)
        end
     || NoPath <- [list_to_atom(Cert), 42, {a, b}, [a | b], [-1], [16#D800], ["a", foo], #{}]
    ].

takes_a_file_whose_name_is_no_utf_8(Config) ->
    % A name is bytes to the system, and was made by who knows whom.
    {Cert, Key, Der} = identity(Config, options),
    Other = filename:join(iolist_to_binary(?config(priv_dir, Config)), <<"caf", 233, ".pem">>),
    {ok, _} = file:copy(Cert, Other),
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{cert_file => Other, key_file => Key}),
    ?assertEqual({certificate, Der}, presented(Pool, Peer)),
    ok = file:write_file(Other, <<>>),
    ok = ?POOL:stop(Pool),
    ?assertEqual(
        {error, {bad_certificate, Other, no_certificate}},
        ?POOL:start_link(#{cert_file => Other, key_file => Key})
    ).

encodes_file_names_as_the_vm_does(Config) ->
    % A node that was started for Latin-1 has certificates whose names are in that.
    {Cert, Key, Der} = identity(Config, options),
    Folder = ?config(priv_dir, Config),
    Name = [$k, 246, $r],
    Other = filename:join(iolist_to_binary(Folder), <<"k", 246, "r">>),
    {ok, _} = file:copy(Cert, Other),
    Options = #{cert_file => filename:join(Folder, Name), key_file => Key},
    Peer = mesh_ct:start_peer(),
    mesh_vm:with(#{env => [{"ERL_AFLAGS", "+fnl"}]}, fun(Vm) ->
        ?assertEqual(latin1, mesh_vm:call(Vm, file, native_name_encoding, [])),
        ok = mesh_vm:call(Vm, start_pool, [Options]),
        Dial = [?POOL, mesh_ct:node_id(Peer), mesh_peer:address(Peer)],
        {ok, _} = mesh_vm:call(Vm, get_or_create_connection, Dial),
        mesh_peer:wait(Peer, connections_opened, 1),
        ?assertEqual({certificate, Der}, mesh_peer:command(Peer, "client_certificate")),
        Trusted = [#{verify => peer, cacertfile => filename:join(Folder, Name)}],
        {ok, Ours} = mesh_vm:call(Vm, macula_gateway_mesh_tls, pool, Trusted),
        ?assertEqual(Other, maps:get(cacertfile, Ours)),
        % What Latin-1 has no letters for names no file there.
        Unsaid = Options#{cert_file => [8364 | Name]},
        {ok, None} = mesh_vm:call(Vm, macula_gateway_mesh_tls, pool, [Unsaid]),
        ?assertEqual(undefined, maps:get(certificate, None))
    end).

tells_what_is_wrong_with_a_certificate_file(Config) ->
    % An operator has to know which file to mend, and how.
    {_, Key, _} = identity(Config, good),
    Folder = ?config(priv_dir, Config),
    Junk = public_key:pem_encode([{'Certificate', <<"junk">>, not_encrypted}]),
    [
        ?assertEqual(
            {error, {bad_certificate, unicode:characters_to_binary(Path), Reason}},
            ?POOL:start_link(#{cert_file => Path, key_file => Key})
        )
     || {Reason, Path} <- [
            {no_certificate, file(Config, "empty.pem", <<>>)},
            {no_certificate, file(Config, "text.pem", <<"no certificate here\n">>)},
            {no_certificate, Key},
            {not_pem, file(Config, "cut.pem", <<"-----BEGIN CERTIFICATE-----\nMIIB\n">>)},
            {not_pem, file(Config, "letters.pem", garbled("CERTIFICATE"))},
            {invalid_certificate, file(Config, "junk.pem", Junk)},
            {eisdir, Folder}
        ]
    ].

tells_what_is_wrong_with_a_key_file(Config) ->
    % The same for the key, and for one that belongs to another certificate.
    {Cert, _, _} = identity(Config, good),
    {_, OtherKey, _} = identity(Config, other),
    Folder = ?config(priv_dir, Config),
    Junk = public_key:pem_encode([{'PrivateKeyInfo', <<"junk">>, not_encrypted}]),
    [
        ?assertEqual(
            {error, {bad_certificate, unicode:characters_to_binary(Path), Reason}},
            ?POOL:start_link(#{cert_file => Cert, key_file => Path})
        )
     || {Reason, Path} <- [
            {no_private_key, file(Config, "empty.key", <<>>)},
            {no_private_key, Cert},
            {not_pem, file(Config, "letters.key", garbled("PRIVATE KEY"))},
            {invalid_key, file(Config, "junk.key", Junk)},
            {key_mismatch, OtherKey},
            {eisdir, Folder}
        ]
    ].

presents_the_certificate_of_its_options(Config) ->
    % The original dropped it in silence, and peers could not tell who called.
    {Cert, Key, Der} = identity(Config, options),
    Peer = mesh_ct:start_peer(["--require-client-cert"]),
    Pool = mesh_ct:start_pool(#{cert_file => Cert, key_file => Key}),
    ?assertEqual({certificate, Der}, presented(Pool, Peer)).

takes_file_names_as_strings_and_as_binaries(Config) ->
    % Erlang nodes configure strings, Elixir ones binaries, in any language's letters.
    {Cert, Key, Der} = identity(Config, [$k, 246, $r, 8364]),
    Peer = mesh_ct:start_peer(),
    [
        begin
            {ok, Pool} = ?POOL:start_link(#{cert_file => Form(Cert), key_file => Form(Key)}),
            ?assertEqual({certificate, Der}, presented(Pool, Peer)),
            ok = ?POOL:stop(Pool)
        end
     || Form <- [fun unicode:characters_to_list/1, fun unicode:characters_to_binary/1]
    ].

options_go_before_the_environment(Config) ->
    % Who configures a node expects the nearest setting to win.
    {Cert, Key, Der} = identity(Config, options),
    set_environment(identity(Config, environment)),
    set_application_environment(identity(Config, application)),
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{cert_file => Cert, key_file => Key}),
    ?assertEqual({certificate, Der}, presented(Pool, Peer)).

the_environment_goes_before_the_application_environment(Config) ->
    % Containers are configured by variables, over what the release has in its sys.config.
    {_, _, Der} = Identity = identity(Config, environment),
    set_environment(Identity),
    set_application_environment(identity(Config, application)),
    Peer = mesh_ct:start_peer(),
    ?assertEqual({certificate, Der}, presented(mesh_ct:start_pool(), Peer)).

the_application_environment_goes_before_the_default_place(Config) ->
    % A release with its own certificates must not present those of the machine.
    {_, _, Der} = Identity = identity(Config, application),
    set_application_environment(Identity),
    with_default_place(identity(Config, default), fun() ->
        Peer = mesh_ct:start_peer(),
        ?assertEqual({certificate, Der}, presented(mesh_ct:start_pool(), Peer))
    end).

presents_the_certificate_of_the_default_place(Config) ->
    % Nodes of the platform's own images configure nothing.
    {_, _, Der} = Identity = identity(Config, default),
    with_default_place(Identity, fun() ->
        Peer = mesh_ct:start_peer(),
        ?assertEqual({certificate, Der}, presented(mesh_ct:start_pool(), Peer))
    end).

presents_none_when_there_is_none(_Config) ->
    % A node without certificates takes part all the same.
    case filelib:is_file(?DEFAULT_FOLDER) of
        true ->
            {skip, ?DEFAULT_FOLDER " is in use on this machine"};
        false ->
            Peer = mesh_ct:start_peer(),
            ?assertEqual(none, presented(mesh_ct:start_pool(), Peer))
    end.

a_peer_that_demands_a_certificate_ends_the_connection(_Config) ->
    % In TLS 1.3 the refusal comes after the handshake: the caller must hear of it nevertheless.
    Peer = mesh_ct:start_peer(["--require-client-cert"]),
    Pool = mesh_ct:start_pool(),
    Refused = {tls_alert, ?CERTIFICATE_REQUIRED},
    case ?POOL:get_or_create_connection(Pool, mesh_ct:node_id(Peer), mesh_peer:address(Peer)) of
        {ok, Stream} ->
            mesh_wait:eventually(true, fun() -> macula_quic:send(Stream, <<"hello">>) =/= ok end),
            ?assertEqual({error, Refused}, macula_quic:send(Stream, <<"hello">>));
        Failure ->
            ?assertEqual({error, {connect_failed, Refused}}, Failure)
    end,
    mesh_wait:eventually(0, fun() -> ?POOL:pool_size(Pool) end).

%%% What the tests share

presented(Pool, Peer) ->
    mesh_ct:connect(Pool, Peer),
    mesh_peer:wait(Peer, connections_opened, 1),
    mesh_peer:command(Peer, "client_certificate").

set_environment({Cert, Key, _Der}) ->
    os:putenv("MACULA_TLS_CERTFILE", Cert),
    os:putenv("MACULA_TLS_KEYFILE", Key).

set_application_environment({Cert, Key, _Der}) ->
    application:set_env(macula, tls_certfile, Cert),
    application:set_env(macula, tls_keyfile, Key).

%% Only where there is no such folder: a node's own certificates are left alone.
with_default_place({Cert, Key, _Der}, Fun) ->
    case file:make_dir(?DEFAULT_FOLDER) of
        ok ->
            Copies = [{Cert, ?DEFAULT_FOLDER "/cert.pem"}, {Key, ?DEFAULT_FOLDER "/key.pem"}],
            try
                [{ok, _} = file:copy(From, To) || {From, To} <- Copies],
                Fun()
            after
                [file:delete(To) || {_, To} <- Copies],
                file:del_dir(?DEFAULT_FOLDER)
            end;
        {error, Reason} ->
            {skip, lists:concat([?DEFAULT_FOLDER, ": ", Reason])}
    end.

%% A new certificate and its key: the names of their files, and the certificate itself.
identity(Config, Name) ->
    Key = [{key, {namedCurve, secp256r1}}],
    Chain = public_key:pkix_test_data(#{root => Key, intermediates => [], peer => Key}),
    Der = proplists:get_value(cert, Chain),
    {KeyType, KeyDer} = proplists:get_value(key, Chain),
    Text = unicode:characters_to_list(io_lib:format("~ts", [Name])),
    CertPem = public_key:pem_encode([{'Certificate', Der, not_encrypted}]),
    KeyPem = public_key:pem_encode([{KeyType, KeyDer, not_encrypted}]),
    {file(Config, Text ++ ".cert", CertPem), file(Config, Text ++ ".key", KeyPem), Der}.

file(Config, Name, Content) ->
    Path = filename:join(?config(priv_dir, Config), Name),
    ok = file:write_file(Path, Content),
    Path.

%% PEM of the right frame, whose content is no base64.
garbled(Label) ->
    lists:concat(["-----BEGIN ", Label, "-----\n?!?!\n-----END ", Label, "-----\n"]).

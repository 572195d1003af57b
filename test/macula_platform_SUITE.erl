%%% `macula_quic' as nodes of macula v0.20.5 configure and call it, on real sockets.
-module(macula_platform_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    listens_with_files_named_by_cert_and_key/1,
    takes_the_platforms_check_of_names_for_its_own/1,
    verifies_in_production_however_that_is_said/1,
    finishes_a_stream_that_it_stops_reading/1,
    takes_nothing_on_a_stream_whose_connection_is_lost/1
]).

-define(WAIT, 5_000).

suite() -> [{timetrap, {seconds, 30}}].

all() ->
    [
        listens_with_files_named_by_cert_and_key,
        takes_the_platforms_check_of_names_for_its_own,
        verifies_in_production_however_that_is_said,
        finishes_a_stream_that_it_stops_reading,
        takes_nothing_on_a_stream_whose_connection_is_lost
    ].

init_per_suite(Config) ->
    %% An RSA key, as nodes may have it; the other suites have elliptic curves. Not of
    %% public_key:pkix_test_data/1: since OTP 29 that makes RSA keys without the parameters that
    %% RFC 3279, section 2.3.1, asks for, and they are refused.
    Authority = quic_certs:authority(filename:join(config(priv_dir, Config), "authority")),
    Facts = #{kind => rsa, names => "DNS:node.example"},
    {CertFile, KeyFile} = quic_certs:issue(Authority, "node", Facts),
    [
        {der, [{cert, quic_certs:der(CertFile)}, {key, quic_certs:key_der(KeyFile)}]},
        {certfile, CertFile},
        {keyfile, KeyFile},
        {cacertfile, filename:join(Authority, "ca.pem")}
        | Config
    ].

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = mesh_ct:forget_configuration(),
    Config.

end_per_testcase(_Name, _Config) -> mesh_ct:forget_configuration().

%% The gateway's listening process gives its PEM files so.
listens_with_files_named_by_cert_and_key(Config) ->
    {Cert, Key} = {config(certfile, Config), config(keyfile, Config)},
    [
        ?assertMatch({ok, _}, macula_quic:listen(0, [{cert, C}, {key, K}, {alpn, ["macula"]}]))
        || {C, K} <- [{Cert, Key}, {list_to_binary(Cert), list_to_binary(Key)}]
    ],
    ?assertEqual(
        {error, {bad_certificate, <<"/no/such.pem">>, enoent}},
        macula_quic:listen(0, [{cert, "/no/such.pem"}, {key, Key}])
    ),
    ?assertEqual(
        {error, {bad_option, cert, undefined}},
        macula_quic:listen(0, [{cert, undefined}, {key, undefined}])
    ),
    {ok, Listener} = macula_quic:listen(0, [{cert, Cert}, {key, Key}]),
    ?assertEqual(ok, macula_quic:reload_certificates(Listener)).

%% In production, nodes hand over a function of their own that checks the name; any other function
%% might refuse what we take, so it cannot be ignored.
takes_the_platforms_check_of_names_for_its_own(Config) ->
    {_Listener, Port} = listen(Config),
    ok = make_platform_module(),
    Check = macula_tls:check(),
    Options = [{verify, none}, {verify_fun, {Check, #{hostname => <<"localhost">>}}}],
    ?assertMatch({ok, _}, macula_quic:connect("127.0.0.1", Port, Options, ?WAIT)),
    Other = fun(_Cert, _Event, State) -> {valid, State} end,
    ?assertEqual(
        {error, {unknown_option, verify_fun}},
        macula_quic:connect("127.0.0.1", Port, [{verify_fun, {Other, #{}}}], ?WAIT)
    ).

make_platform_module() ->
    Source = [
        "-module(macula_tls).",
        "-export([check/0, hostname_verify_fun/3]).",
        "check() -> fun hostname_verify_fun/3.",
        "hostname_verify_fun(_Cert, _Event, State) -> {valid, State}."
    ],
    {ok, macula_tls, Code} = compile:forms([form(Line) || Line <- Source]),
    {module, macula_tls} = code:load_binary(macula_tls, "macula_tls.erl", Code),
    ok.

form(Line) ->
    {ok, Tokens, _} = erl_scan:string(Line),
    {ok, Form} = erl_parse:parse_form(Tokens),
    Form.

verifies_in_production_however_that_is_said(Config) ->
    {_Listener, Port} = listen(Config),
    Dial = fun() -> macula_quic:connect("127.0.0.1", Port, [], ?WAIT) end,
    ?assertMatch({ok, _}, Dial()),
    true = os:putenv("MACULA_TLS_MODE", "prod"),
    ?assertMatch({error, {unverified, _}}, Dial()),
    true = os:unsetenv("MACULA_TLS_MODE"),
    [
        begin
            ok = application:set_env(macula, tls_mode, Mode),
            ?assertMatch({error, {unverified, _}}, Dial())
        end
     || Mode <- [prod, "production", <<"prod">>, <<"production">>, production]
    ],
    %% The environment comes first.
    true = os:putenv("MACULA_TLS_MODE", "development"),
    ?assertMatch({ok, _}, Dial()),
    true = os:unsetenv("MACULA_TLS_MODE"),
    ok = application:set_env(macula, tls_cacertfile, config(cacertfile, Config)),
    ?assertEqual({error, {unverified, wrong_name}}, Dial()),
    true = os:putenv("MACULA_TLS_VERIFY_HOSTNAME", "0"),
    ?assertMatch({ok, _}, Dial()),
    true = os:unsetenv("MACULA_TLS_VERIFY_HOSTNAME"),
    ok = application:set_env(macula, tls_verify_hostname, false),
    ?assertMatch({ok, _}, Dial()).

%% The flags of async_shutdown_stream/3 are a sum.
finishes_a_stream_that_it_stops_reading(Config) ->
    {Ours, Theirs} = streams(Config),
    ok = macula_quic:setopt(Theirs, active, true),
    ok = macula_quic:send(Ours, <<"last">>),
    ok = macula_quic:async_shutdown_stream(Ours, 1 bor 4, 0),
    receive
        {quic, peer_send_shutdown, Theirs, undefined} -> ok
    after ?WAIT -> error(not_finished)
    end,
    receive
        {quic, peer_receive_aborted, Theirs, 0} -> ok
    after ?WAIT -> error(not_stopped)
    end.

%% Nobody would ever hear of what it took.
takes_nothing_on_a_stream_whose_connection_is_lost(Config) ->
    {_Ours, Theirs} = streams(Config),
    ok = macula_quic:async_shutdown_connection(get(client), 0, 7),
    ?assertEqual({error, {closed_by_peer, 7}}, macula_quic:recv(Theirs, ?WAIT)),
    %% The reading half knows; the other hears of it at about the same time.
    Refused = {error, {closed_by_peer, 7}},
    mesh_wait:eventually(Refused, fun() -> macula_quic:send(Theirs, <<"late">>) end),
    ?assertEqual(Refused, macula_quic:send(Theirs, <<"later">>)).

config(Key, Config) -> proplists:get_value(Key, Config).

listen(Config) ->
    {ok, Listener} = macula_quic:listen(0, config(der, Config)),
    put(listener, Listener),
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    {Listener, Port}.

%% Both ends of a passive stream.
streams(Config) ->
    {Listener, Port} = listen(Config),
    {ok, Client} = macula_quic:connect("127.0.0.1", Port, [{verify, none}], ?WAIT),
    put(client, Client),
    {ok, Server} = macula_quic:accept(Listener, ?WAIT),
    put(server, Server),
    {ok, Ours} = macula_quic:open_stream(Client),
    ok = macula_quic:send(Ours, <<"first">>),
    {ok, Theirs} = macula_quic:accept_stream(Server, ?WAIT),
    {ok, <<"first">>} = macula_quic:recv(Theirs, ?WAIT),
    {Ours, Theirs}.
